"""Ctrl-C and SIGTERM: leave at once while there is nothing to lose, else at the next safe point."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import FrameType

from zoft.errors import Interrupted

NUMBERS = (signal.SIGINT, signal.SIGTERM)


class LeftAtOnce(BaseException):
    """A signal while nothing was begun. Not an Exception: whoever explains a failed download or a
    model that cannot be read must not explain this."""

    def __init__(self, number: int) -> None:
        super().__init__(f"stopped by {signal.Signals(number).name}")
        self.exit_code = 128 + number


@dataclass
class Stop:
    """Set by a signal; `check` raises Interrupted (exit code 128 + signal) at a safe point.

    Until `patient` is set, a signal does not wait for that point: imports, downloads, conversions and
    reading data have nothing to finish, and some of them no place for a check.
    """

    signal: int | None = None
    hint: str = ""
    patient: bool = False

    def check(self) -> None:
        if self.signal is not None:
            name = signal.Signals(self.signal).name
            raise Interrupted(f"stopped by {name}{self.hint}", 128 + self.signal)


@contextmanager
def stop_on_signals(hint: str = "") -> Iterator[Stop]:
    """Once the stop is patient, the first signal sets the flag and a second Ctrl-C leaves at once (the
    journal stays intact).

    `hint` tells the user how to go on.
    """
    stop = Stop(hint=hint)

    def note(number: int, _frame: FrameType | None) -> None:
        if not stop.patient:
            raise LeftAtOnce(number)
        if stop.signal is not None and number == signal.SIGINT:
            raise KeyboardInterrupt
        stop.signal = number

    with _handled(note):
        yield stop


@contextmanager
def leaving_at_once() -> Iterator[None]:
    """For all of a command, so that SIGTERM unwinds the stack as Ctrl-C does."""

    def leave(number: int, _frame: FrameType | None) -> None:
        raise LeftAtOnce(number)

    with _handled(leave):
        yield


@contextmanager
def _handled(handler: Callable[[int, FrameType | None], None]) -> Iterator[None]:
    """Python handles signals in the main thread alone; elsewhere nothing is changed."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.signal(number, handler) for number in NUMBERS}
    try:
        yield
    finally:
        for number, previous in before.items():
            signal.signal(number, previous)
