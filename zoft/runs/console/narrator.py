"""What a run tells people: two live lines on a terminal, plain lines elsewhere."""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

from rich.console import Console, ConsoleOptions, Group, RenderableType, RenderResult
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from zoft.engine.optimizers.measurement import rms
from zoft.recipe.schema import Recipe
from zoft.runs.console.progress import Progress, clock
from zoft.runs.metrics import Event, format_primary, in_words, primary_metric
from zoft.system.host_memory import gib

Peak = Callable[[], int]  # bytes
BAR = 10  # characters of the bar, at least


class Narrator(Protocol):
    """Tells people how the run goes."""

    def say(self, text: str) -> None:
        """A line that stays."""

    def resume(self, events: Sequence[Event]) -> None:
        """What an earlier part of the run did."""

    def step(self, event: Event) -> None:
        """A train event."""

    def evaluating(self, what: str, done: int, rows: int) -> None:
        """`done` of the `rows` of a set were scored, or written behind; `what` says which."""

    def score(self, event: Event) -> None:
        """An eval event."""

    def close(self) -> None: ...


class PlainNarrator:
    """One line per `every` steps, for logs and pipes."""

    def __init__(self, progress: Progress, every: int) -> None:
        self._progress, self._every = progress, every

    def say(self, text: str) -> None:
        print(text, flush=True)

    def resume(self, events: Sequence[Event]) -> None:
        self._progress.resume(events)

    def step(self, event: Event) -> None:
        progress = self._progress
        progress.add(event)
        if event["step"] % self._every == 0 or event["step"] == progress.steps:
            parts = [*losses(progress), *speeds(progress), *left(progress)]
            self.say(f"step {progress.step}/{progress.steps} {' '.join(parts)}")

    def evaluating(self, what: str, done: int, rows: int) -> None:
        pass

    def score(self, event: Event) -> None:
        self._progress.add(event)
        self.say(told(event, self._progress.zero_shot))

    def close(self) -> None:
        pass


class LiveNarrator:
    """Two lines that are redrawn, under the lines that stay."""

    def __init__(self, progress: Progress, console: Console, peak: Peak) -> None:
        self._progress, self._peak = progress, peak
        self._evaluation: Evaluation | None = None
        self._live = Live(console=console, transient=True, refresh_per_second=4)
        self._live.start()

    def say(self, text: str) -> None:
        self._live.console.print(text, highlight=False, markup=False, soft_wrap=True)

    def resume(self, events: Sequence[Event]) -> None:
        self._progress.resume(events)

    def step(self, event: Event) -> None:
        self._progress.add(event)
        self._draw(None)

    def evaluating(self, what: str, done: int, rows: int) -> None:
        begun = self._evaluation.begun if self._evaluation else time.monotonic()
        self._draw(Evaluation(what, done, rows, begun))

    def score(self, event: Event) -> None:
        self._progress.add(event)
        self.say(told(event, self._progress.zero_shot))
        self._draw(None)

    def _draw(self, evaluation: Evaluation | None) -> None:
        self._evaluation = evaluation
        self._live.update(Lines(self._progress, self._peak(), evaluation))

    def close(self) -> None:
        self._live.stop()


@dataclass(frozen=True, slots=True)
class Evaluation:
    """An evaluation under way; `begun` is on the clock of `time.monotonic`."""

    what: str
    done: int
    rows: int
    begun: float

    def __str__(self) -> str:
        seconds = clock(time.monotonic() - self.begun)
        return f"{self.what} {self.done:,}/{self.rows:,} rows, {seconds}"


class Lines:
    """The two live lines, drawn for whatever width and at whatever time: an evaluation's clock moves
    between two batches as well."""

    def __init__(self, progress: Progress, peak: int, evaluation: Evaluation | None = None) -> None:
        self._progress, self._peak, self._evaluation = progress, peak, evaluation

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        progress, width = self._progress, options.max_width
        where = Text(f"step {progress.step}/{progress.steps}")
        ends = [Text(part, style="cyan") for part in left(progress)]
        score = Text(compared(progress), style="bold green")
        words = sum(cell.cell_len + 2 for cell in (where, *ends, score))
        if words + BAR > width:
            score = Text(compared(progress, short=True), style="bold green")
        top = Table.grid(padding=(0, 2), expand=True)
        cells: list[RenderableType] = [
            where,
            ProgressBar(total=progress.steps, completed=progress.step),
            *ends,
        ]
        cells += [score] if score else []
        for cell in cells:
            top.add_column(ratio=1 if isinstance(cell, ProgressBar) else None, no_wrap=True)
        top.add_row(*cells)
        yield Group(top, Text(self._numbers(width), no_wrap=True, overflow="ellipsis"))

    def _numbers(self, width: int) -> str:
        """As many of the numbers as fit, in their order; what matters least is left out first."""
        progress, parts = self._progress, [str(self._evaluation)] if self._evaluation else []
        if progress.train is None:
            return "".join(parts)
        parts += [*losses(progress), *speeds(progress), gib(self._peak)]
        parts.append(f"lr {progress.train['lr']:.3g}")
        # lr and memory hardly change, tokens follow steps; the probes are noise by nature.
        for name in ("lr ", " GiB", " tok/s", "("):
            if len("  ".join(parts)) > width:
                parts = [part for part in parts if name not in part]
        return "  ".join(parts)


def losses(progress: Progress) -> list[str]:
    """loss 0.5830, (0.610/0.550), |c| 12.1, skipped 2: smoothed; the last probes; c's RMS."""
    event = progress.train
    assert event is not None
    plus, minus, size = event["loss_plus"], event["loss_minus"], rms(event["projected_grad"])
    shown = "-" if progress.loss is None else f"{progress.loss:.4f}"
    return [
        f"loss {shown}",
        "(not finite)" if None in (*plus, *minus) else f"({plus[0]:.3f}/{minus[0]:.3f})",
        f"|c| {'-' if math.isnan(size) else format(size, '.3g')}",
        *([f"skipped {event['skipped']}"] if event["skipped"] else []),
    ]


def speeds(progress: Progress) -> list[str]:
    """1.25 it/s, 812 tok/s"""
    steps, tokens = progress.steps_per_second, progress.tokens_per_second
    parts = (
        [] if steps is None else [f"{steps:.2f} it/s" if steps >= 0.1 else f"{1 / steps:.0f} s/it"]
    )
    return [*parts, *([] if tokens is None else [f"{tokens:,.0f} tok/s"])]


def left(progress: Progress) -> list[str]:
    """4:12 left"""
    seconds = progress.seconds_left
    return [] if seconds is None or progress.step == progress.steps else [f"{clock(seconds)} left"]


def compared(progress: Progress, *, short: bool = False) -> str:
    """accuracy 0.781 (zero-shot 0.514): the last evaluation beside the first. Short: 0.781 (0.514)."""
    if progress.score is None:
        return ""
    words = format_primary(progress.score)
    if progress.zero_shot and progress.score is not progress.zero_shot:
        before = format_primary(progress.zero_shot).removeprefix(
            f"{primary_metric(progress.zero_shot)[0]} "
        )
        return f"{words} ({before})" if short else f"{words} (zero-shot {before})"
    return words if short else f"zero-shot {words}"


def told(event: Event, zero_shot: Event | None) -> str:
    """The line that an evaluation leaves."""
    if event["event"] == "tail":
        return f"eval, tail alone: {in_words(event)}"
    if event["step"] == 0:
        return f"eval before tuning: {in_words(event)}"
    beside = f"; zero-shot {format_primary(zero_shot)}" if zero_shot else ""
    return f"eval step {event['step']}: {in_words(event)}{beside}"


def narrator_for(recipe: Recipe, peak: Peak) -> Narrator:
    """Live lines on a terminal, plain lines elsewhere."""
    console, progress = Console(), Progress(recipe.train.steps, recipe.eval.every)
    if console.is_terminal and sys.stdout.isatty():
        return LiveNarrator(progress, console, peak)
    return PlainNarrator(progress, recipe.logging.every)
