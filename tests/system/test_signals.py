from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager

import pytest

from zoft.cli.main import main
from zoft.errors import Interrupted
from zoft.system.signals import LeftAtOnce, Stop, leaving_at_once, stop_on_signals


@pytest.fixture(autouse=True)
def handlers_are_restored() -> Iterator[None]:
    """Every test leaves the handlers that it found."""
    numbers = (signal.SIGINT, signal.SIGTERM)
    before = [signal.getsignal(number) for number in numbers]
    yield
    after = [signal.getsignal(number) for number in numbers]
    for number, handler in zip(numbers, before, strict=True):
        signal.signal(number, handler)
    assert after == before


@pytest.mark.parametrize(
    ("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)], ids=["TERM", "INT"]
)
def test_a_signal_stops_at_the_next_safe_point(number: signal.Signals, code: int) -> None:
    with stop_on_signals("; go on with --resume auto") as stop:
        stop.patient = True
        stop.check()
        os.kill(os.getpid(), number)
        assert stop.signal == number
        with pytest.raises(Interrupted, match=f"stopped by {number.name}.*--resume auto") as caught:
            stop.check()
    assert caught.value.exit_code == code


@pytest.mark.parametrize(
    ("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)], ids=["TERM", "INT"]
)
@pytest.mark.parametrize("handling", [stop_on_signals, leaving_at_once])
def test_with_nothing_begun_a_signal_leaves_at_once(
    handling: Callable[[], AbstractContextManager[object]], number: signal.Signals, code: int
) -> None:
    def explains() -> None:
        try:
            os.kill(os.getpid(), number)
        except Exception as error:
            raise AssertionError("a signal is no failure to be explained") from error

    with handling(), pytest.raises(LeftAtOnce, match=f"^stopped by {number.name}$") as caught:
        explains()
    assert caught.value.exit_code == code


@pytest.mark.parametrize(
    ("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)], ids=["TERM", "INT"]
)
def test_a_command_that_a_signal_ends_has_its_code(
    number: signal.Signals,
    code: int,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("zoft.recipe.packaged.names", lambda: os.kill(os.getpid(), number))
    assert main(["recipes", "ls"]) == code
    assert capsys.readouterr().err == f"error: stopped by {number.name}\n"


def test_another_thread_changes_no_handler() -> None:
    before, inside = signal.getsignal(signal.SIGTERM), []

    def elsewhere() -> None:
        with stop_on_signals():
            inside.append(signal.getsignal(signal.SIGTERM))

    thread = threading.Thread(target=elsewhere)
    thread.start()
    thread.join()
    assert inside == [before]


@pytest.mark.parametrize("first", [signal.SIGTERM, signal.SIGINT])
def test_a_second_ctrl_c_leaves_at_once(first: signal.Signals) -> None:
    with stop_on_signals() as stop:
        stop.patient = True
        os.kill(os.getpid(), first)
        assert stop.signal == first
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)


def test_a_second_sigterm_is_as_patient_as_the_first() -> None:
    with stop_on_signals() as stop:
        stop.patient = True
        os.kill(os.getpid(), signal.SIGTERM)
        os.kill(os.getpid(), signal.SIGTERM)
        assert stop.signal == signal.SIGTERM


def test_handlers_come_back_whatever_is_raised() -> None:
    before = signal.getsignal(signal.SIGTERM)
    inside = []

    def fails() -> None:
        inside.append(signal.getsignal(signal.SIGTERM))
        raise RuntimeError("lost")

    with pytest.raises(RuntimeError, match="lost"), stop_on_signals():
        fails()
    assert inside != [before]
    assert signal.getsignal(signal.SIGTERM) == before


def test_without_a_signal_nothing_stops() -> None:
    Stop().check()
