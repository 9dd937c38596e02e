from __future__ import annotations

import io
from collections.abc import Callable

import pytest
from rich.console import Console, RenderableType
from support.events import train_event
from support.recipes import recipe

from zoft.runs.console.narrator import Lines, LiveNarrator, PlainNarrator, narrator_for
from zoft.runs.console.progress import SMOOTH, Progress
from zoft.runs.metrics import Event


def eval_event(step: int, accuracy: float) -> Event:
    values = {"accuracy": accuracy, "loss": 1.0, "rows": 1000, "seconds": 4.0}
    return {"event": "eval", "step": step, **values}


def drawn(lines: Progress | RenderableType, width: int) -> list[str]:
    console = Console(file=io.StringIO(), width=width, force_terminal=True, color_system=None)
    with console.capture() as capture:
        console.print(Lines(lines, peak=3 * 2**29) if isinstance(lines, Progress) else lines)
    return capture.get().splitlines()


def live(progress: Progress) -> tuple[LiveNarrator, Callable[[], str]]:
    """A narrator, and what stands in its second line whenever rich draws it: four times a second."""
    screen = Console(file=io.StringIO(), force_terminal=True)
    narrator = LiveNarrator(progress, screen, lambda: 0)
    return narrator, lambda: drawn(narrator._live.renderable, 200)[1].rstrip()


@pytest.fixture
def progress() -> Progress:
    found = Progress(steps=600, eval_every=100)
    found.add(eval_event(0, 0.514))
    for step in range(1, 124):
        found.add(train_event(step, skipped=2))
        if step == 100:
            found.add(eval_event(100, 0.781))
    return found


def test_plain_lines_every_few_steps_and_at_the_end(capsys: pytest.CaptureFixture[str]) -> None:
    narrator = PlainNarrator(Progress(steps=7), every=3)
    for step in range(1, 8):
        narrator.step(train_event(step))
    narrator.say("note: done")
    narrator.close()
    numbers = "loss 0.5000 (0.610/0.550) |c| 12.1 1.25 it/s 100 tok/s"
    out = capsys.readouterr().out
    assert out.splitlines() == [
        f"step 3/7 {numbers} 0:03 left",
        f"step 6/7 {numbers} 0:01 left",
        f"step 7/7 {numbers}",
        "note: done",
    ]
    assert out.replace("\n", "").isprintable()


def test_the_loss_that_is_shown_is_smoothed_also_after_a_resume(
    capsys: pytest.CaptureFixture[str],
) -> None:
    narrator = PlainNarrator(Progress(steps=2), every=2)
    narrator.resume([train_event(1, loss=1.0)])
    narrator.step(train_event(2, loss=0.0))
    assert f"loss {SMOOTH:.4f} (" in capsys.readouterr().out


def test_evaluations_stand_beside_the_first(capsys: pytest.CaptureFixture[str]) -> None:
    narrator = PlainNarrator(Progress(steps=7), every=3)
    narrator.score(eval_event(0, 0.5))
    narrator.score(eval_event(5, 0.75))
    assert capsys.readouterr().out.splitlines() == [
        "eval before tuning: accuracy 0.500, loss 1.0000 (1,000 rows)",
        "eval step 5: accuracy 0.750, loss 1.0000 (1,000 rows); zero-shot accuracy 0.500",
    ]


def test_several_directions_and_losses_that_are_not_finite(
    capsys: pytest.CaptureFixture[str],
) -> None:
    narrator = PlainNarrator(Progress(steps=9), every=1)
    narrator.step(train_event(1, loss=None, loss_plus=[None], projected_grad=[None], skipped=1))
    several = {"loss_plus": [0.1, 0.2], "loss_minus": [0.3, 0.4], "projected_grad": [3.0, -4.0]}
    narrator.step(train_event(2, **several))
    first, second = capsys.readouterr().out.splitlines()
    assert first == "step 1/9 loss - (not finite) |c| - skipped 1"
    assert "(0.100/0.300) |c| 3.54 " in second


@pytest.mark.parametrize("width", [80, 200])
def test_two_live_lines_hold_everything_that_matters(progress: Progress, width: int) -> None:
    top, bottom = drawn(progress, width)
    assert max(len(top), len(bottom)) <= width
    assert top.startswith("step 123/600")
    assert "━" in top
    assert top.rstrip().endswith("left  accuracy 0.781 (zero-shot 0.514)")
    assert "loss 0.5000  (0.610/0.550)  |c| 12.1  skipped 2  1.25 it/s  100 tok/s" in bottom
    assert ("1.50 GiB  lr 0.0001" in bottom) == (width == 200)


@pytest.mark.parametrize("width", [40, 60])
def test_where_it_is_narrow_the_least_important_goes(progress: Progress, width: int) -> None:
    lines = drawn(progress, width)
    assert len(lines) == 2
    assert max(map(len, lines)) <= width
    assert "accuracy 0.781 (0.514)" in lines[0] or width == 40
    assert lines[1].startswith("loss 0.5000")
    assert "GiB" not in lines[1]


def test_an_evaluation_under_way_stands_first_and_its_clock_moves(
    progress: Progress, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = [100.0]
    monkeypatch.setattr("time.monotonic", lambda: now[0])
    narrator, shown = live(progress)
    narrator.step(train_event(124))
    before = shown()
    assert before.startswith("loss 0.5000")
    narrator.evaluating("writing", 0, 1000)
    assert shown().startswith("writing 0/1,000 rows, 0:00  loss 0.5000")
    now[0] += 75
    assert shown().startswith("writing 0/1,000 rows, 1:15  loss 0.5000")
    narrator.evaluating("scoring", 640, 1000)
    assert shown().startswith("scoring 640/1,000 rows, 1:15  loss 0.5000")
    narrator.score(eval_event(124, 0.7))
    assert shown() == before
    narrator.close()


def test_the_first_evaluation_is_shown_before_there_is_a_step() -> None:
    narrator, shown = live(Progress(steps=7))
    narrator.evaluating("scoring", 8, 12)
    assert shown() == "scoring 8/12 rows, 0:00"
    narrator.close()


def test_no_terminal_gets_plain_lines() -> None:
    assert isinstance(narrator_for(recipe(), lambda: 0), PlainNarrator)


def test_a_terminal_gets_live_lines_under_lines_that_stay() -> None:
    screen = io.StringIO()
    console = Console(file=screen, force_terminal=True, width=120)
    narrator = LiveNarrator(Progress(steps=7), console, lambda: 0)
    narrator.step(train_event(3))
    narrator.say("note [step 3]: [bold]done")  # not markup
    narrator.score(eval_event(0, 0.5))
    narrator.close()
    assert "note [step 3]: [bold]done\n" in screen.getvalue()
    assert "eval before tuning: accuracy 0.500" in screen.getvalue()
    assert "step 3/7" in screen.getvalue()
