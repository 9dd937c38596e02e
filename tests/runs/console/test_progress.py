from __future__ import annotations

import pytest

from zoft.runs.console.progress import PACE, SMOOTH, Progress, Smoothed, clock
from zoft.runs.metrics import Event


def train_event(step: int, seconds: float = 0.5, loss: float | None = 0.5) -> Event:
    return {"event": "train", "step": step, "loss": loss, "seconds": seconds, "tokens": 100}


def eval_event(step: int, accuracy: float, seconds: float = 4.0) -> Event:
    return {"event": "eval", "step": step, "accuracy": accuracy, "loss": 1.0, "seconds": seconds}


def test_smoothing_starts_at_the_first_value_and_skips_what_is_not_finite() -> None:
    smooth = Smoothed()
    assert smooth(None) is None
    assert smooth(2.0) == 2.0
    assert smooth(None) == 2.0
    assert smooth(4.0) == pytest.approx(2.0 * SMOOTH + 4.0 * (1 - SMOOTH))


def test_a_first_step_that_compiles_does_not_count() -> None:
    progress = Progress(steps=10)
    progress.add(train_event(1, seconds=30.0))
    assert (progress.steps_per_second, progress.seconds_left) == (None, None)
    progress.add(train_event(2, seconds=0.5))
    assert progress.steps_per_second == pytest.approx(2.0)
    assert progress.tokens_per_second == pytest.approx(200.0)
    assert progress.seconds_left == pytest.approx(8 * 0.5)
    progress.add(train_event(3, seconds=1.5))
    assert progress.steps_per_second == pytest.approx(1 / (0.5 * PACE + 1.5 * (1 - PACE)))


def test_what_is_left_counts_the_evaluations_that_are_due() -> None:
    progress = Progress(steps=10, eval_every=3)
    progress.add(eval_event(0, 0.5))
    for step in (1, 2):
        progress.add(train_event(step))
    assert progress.seconds_left == pytest.approx(8 * 0.5 + 4 * 4.0)  # at 3, 6, 9 and 10
    for step in (3, 4):
        progress.add(train_event(step))
    progress.add(eval_event(3, 0.6, seconds=2.0))
    assert progress.seconds_left == pytest.approx(6 * 0.5 + 3 * 2.0)
    for step in range(5, 11):
        progress.add(train_event(step))
    progress.add(eval_event(9, 0.6, seconds=2.0))
    assert progress.seconds_left == pytest.approx(2.0)
    progress.add(eval_event(10, 0.6, seconds=2.0))
    assert progress.seconds_left == 0.0
    assert progress.zero_shot is not None
    assert progress.score is not None
    assert (progress.zero_shot["accuracy"], progress.score["accuracy"]) == (0.5, 0.6)


def test_a_resumed_run_goes_on_with_its_loss_and_measures_its_speed_anew() -> None:
    whole, resumed = Progress(steps=100), Progress(steps=100)
    events = [train_event(step, loss=1.0 / step) for step in range(1, 6)]
    for event in events:
        whole.add(event)
    resumed.resume(events)
    assert (resumed.loss, resumed.step) == (whole.loss, 5)
    resumed.add(train_event(6, seconds=30.0, loss=0.1))
    whole.add(train_event(6, loss=0.1))
    assert resumed.loss == whole.loss
    assert resumed.seconds_left == pytest.approx(
        94 * 0.5
    )  # the old speed, until there is a new one
    resumed.add(train_event(7, seconds=2.0))
    assert resumed.seconds_left == pytest.approx(93 * 2.0)


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.4, "0:00"), (59.7, "1:00"), (252, "4:12"), (3800, "1:03:20"), (180_000, "2 d 02:00")],
)
def test_a_clock(seconds: float, text: str) -> None:
    assert clock(seconds) == text
