from __future__ import annotations

import io
import json
import math
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from zoft.errors import EnvironmentProblem
from zoft.tracking import (
    SMOOTH,
    Event,
    LiveNarrator,
    Metrics,
    PlainNarrator,
    Smoothed,
    describe,
    in_words,
    narrator_for,
)

VALUES = st.floats(allow_nan=False, allow_infinity=False) | st.integers() | st.text()


def train_event(step: int, **changes: Any) -> Event:
    event = {
        "event": "train",
        "step": step,
        "loss": 0.5,
        "loss_plus": [0.61],
        "loss_minus": [0.55],
        "projected_grad": [12.125],
        "lr": 1e-4,
        "skipped": 0,
        "seconds": 0.8,
        "tokens": 99,
    }
    return event | changes


@given(
    events=st.lists(
        st.tuples(
            st.sampled_from(["train", "eval", "checkpoint", "final"]),
            st.integers(0, 2**32),
            st.dictionaries(st.sampled_from("abc"), VALUES),
        )
    )
)
def test_events_come_back(
    tmp_path_factory: pytest.TempPathFactory, events: list[tuple[str, int, dict[str, Any]]]
) -> None:
    metrics = Metrics(tmp_path_factory.mktemp("run") / "metrics.jsonl")
    returned = [metrics.write(event, step, **values) for event, step, values in events]
    assert returned == [{"event": e, "step": s, **v} for e, s, v in events]
    assert metrics.read() == returned


def test_what_is_not_finite_is_null(tmp_path: Path) -> None:
    metrics = Metrics(tmp_path / "metrics.jsonl")
    event = metrics.write("eval", 1, a=math.nan, b=math.inf, c=-math.inf, d=0.5)
    assert event == {"event": "eval", "step": 1, "a": None, "b": None, "c": None, "d": 0.5}
    assert json.loads(metrics.path.read_text()) == event


def test_each_event_is_in_the_file_at_once(tmp_path: Path) -> None:
    metrics = Metrics(tmp_path / "metrics.jsonl")
    assert metrics.read() == []
    for step in range(3):
        metrics.write("train", step)
        assert len(Metrics(metrics.path).read()) == step + 1


@pytest.mark.parametrize(
    "torn", ['{"event": "train", "st', '{"event": "train", "step": 3}', "\0\0"]
)
def test_a_torn_line_is_ignored_and_gone_after_a_rewind(tmp_path: Path, torn: str) -> None:
    metrics = Metrics(tmp_path / "metrics.jsonl")
    first = metrics.write("train", 1)
    with metrics.path.open("a") as file:
        file.write(torn)
    assert metrics.read() == [first]
    metrics.rewind(1)
    second = metrics.write("train", 2)
    assert metrics.read() == [first, second]


def test_a_rewind_forgets_what_lies_beyond_and_the_end(tmp_path: Path) -> None:
    metrics = Metrics(tmp_path / "metrics.jsonl")
    for step in range(4):
        metrics.write("train", step)
    metrics.write("eval", 2)
    metrics.write("final", 2)
    metrics.rewind(2)
    kept = [(event["event"], event["step"]) for event in metrics.read()]
    assert kept == [("train", 0), ("train", 1), ("train", 2), ("eval", 2)]
    assert [path.name for path in tmp_path.iterdir()] == ["metrics.jsonl"]


def test_a_rewind_of_nothing(tmp_path: Path) -> None:
    metrics = Metrics(tmp_path / "metrics.jsonl")
    metrics.rewind(5)
    assert metrics.read() == []


def test_a_file_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    with pytest.raises(EnvironmentProblem, match=r"no/metrics\.jsonl cannot be written: No such"):
        Metrics(tmp_path / "no" / "metrics.jsonl").write("train", 1)


def test_plain_lines_every_few_steps_and_at_the_end(capsys: pytest.CaptureFixture[str]) -> None:
    narrator = PlainNarrator(steps=7, every=3)
    for step in range(1, 8):
        narrator.step(train_event(step))
    narrator.say("eval [step 7]: done")
    narrator.close()
    numbers = "loss 0.5000 (0.610/0.550) |c| 12.1 1.25 it/s"
    assert capsys.readouterr().out.splitlines() == [
        f"step 3/7 {numbers}",
        f"step 6/7 {numbers}",
        f"step 7/7 {numbers}",
        "eval [step 7]: done",
    ]


def test_the_loss_that_is_shown_is_smoothed(capsys: pytest.CaptureFixture[str]) -> None:
    narrator = PlainNarrator(steps=2, every=2)
    narrator.step(train_event(1, loss=1.0))  # not shown, but counted
    narrator.step(train_event(2, loss=0.0))
    assert f"loss {SMOOTH:.4f} (" in capsys.readouterr().out


def test_smoothing_starts_at_the_first_value_and_skips_what_is_not_finite() -> None:
    smooth = Smoothed()
    assert smooth(None) is None
    assert smooth(2.0) == 2.0
    assert smooth(None) == 2.0
    assert smooth(4.0) == pytest.approx(2.0 * SMOOTH + 4.0 * (1 - SMOOTH))


def test_a_step_in_words() -> None:
    assert describe(train_event(1, skipped=2), 0.25) == (
        "loss 0.2500 (0.610/0.550) |c| 12.1 skipped 2 1.25 it/s"
    )
    # Over several directions c is their RMS; the losses are the first direction's.
    several = train_event(
        1, loss_plus=[0.1, 0.2], loss_minus=[0.3, 0.4], projected_grad=[3.0, -4.0]
    )
    assert "(0.100/0.300) |c| 3.54 " in describe(several, 1.0)
    broken = train_event(1, loss_plus=[None], projected_grad=[None])
    assert describe(broken, None) == "loss - (not finite) |c| - 1.25 it/s"


def test_a_score_in_words() -> None:
    event = {"accuracy": 0.5321, "loss": 1.104, "rows": 1000}
    assert in_words(event) == "accuracy 0.532, loss 1.1040 (1,000 rows)"
    assert in_words({"loss": None, "rows": 5}) == "loss not finite (5 rows)"
    event = {"step": 3, "exact_match": 0.5, "f1": 0.61, "loss": 2, "rows": 5, "seconds": 1.2}
    assert in_words(event) == "exact match 0.500, f1 0.610, loss 2.0000 (5 rows)"


def test_no_terminal_gets_plain_lines() -> None:
    assert isinstance(narrator_for(steps=7, every=3), PlainNarrator)


def test_a_terminal_gets_one_live_line_under_lines_that_stay() -> None:
    screen = io.StringIO()
    console = Console(file=screen, force_terminal=True, width=120)
    narrator = LiveNarrator(steps=7, console=console)
    narrator.step(train_event(3))
    narrator.say("eval [step 3]: [bold]done")  # not markup
    narrator.close()
    assert "eval [step 3]: [bold]done\n" in screen.getvalue()
    assert "step 3/7" in screen.getvalue()
