"""What a run tells: metrics.jsonl for programs, one live line or plain lines for people."""

from __future__ import annotations

import json
import math
import sys
from pathlib import Path
from typing import Any, Protocol

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

from zoft.errors import EnvironmentProblem

Event = dict[str, Any]
# What an evaluation may have measured, as it is called in a line.
SCORES = {"accuracy": "accuracy", "f1": "f1", "exact_match": "exact match", "loss": "loss"}
SMOOTH = 0.95  # of the loss that is shown: one batch's loss says little


class Metrics:
    """metrics.jsonl: one object per event, {"event": ..., "step": ..., ...}; NaN is null."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def write(self, event: str, step: int, **values: Any) -> Event:
        clean = {
            key: None if isinstance(value, float) and not math.isfinite(value) else value
            for key, value in values.items()
        }
        record: Event = {"event": event, "step": step, **clean}
        try:
            with self.path.open("a", encoding="utf-8") as file:
                file.write(json.dumps(record) + "\n")
        except OSError as error:
            raise EnvironmentProblem(f"{self.path} cannot be written: {error.strerror}") from error
        return record

    def read(self) -> list[Event]:
        """All complete events."""
        if not self.path.exists():
            return []
        lines = self.path.read_text(encoding="utf-8", errors="replace").splitlines(keepends=True)
        return [json.loads(line) for line in lines if line.endswith("}\n")]

    def rewind(self, step: int) -> None:
        """Forget what lies beyond `step` (a power cut can leave the journal behind the metrics)."""
        kept = [e for e in self.read() if e["step"] <= step and e["event"] != "final"]
        text = "".join(json.dumps(event) + "\n" for event in kept)
        temporary = self.path.with_suffix(".tmp")
        temporary.write_text(text, encoding="utf-8")
        temporary.replace(self.path)


class Narrator(Protocol):
    """Tells people how the run goes."""

    def say(self, text: str) -> None:
        """A line that stays."""

    def step(self, event: Event) -> None:
        """A train event."""

    def close(self) -> None: ...


class PlainNarrator:
    """One line per `every` steps, for logs and pipes."""

    def __init__(self, steps: int, every: int) -> None:
        self._steps, self._every = steps, every
        self._smooth = Smoothed()

    def say(self, text: str) -> None:
        print(text, flush=True)

    def step(self, event: Event) -> None:
        loss = self._smooth(event["loss"])
        if event["step"] % self._every == 0 or event["step"] == self._steps:
            print(f"step {event['step']}/{self._steps} {describe(event, loss)}", flush=True)

    def close(self) -> None:
        pass


class LiveNarrator:
    """One line that is redrawn, under the lines that stay."""

    def __init__(self, steps: int, console: Console) -> None:
        self._smooth = Smoothed()
        self._progress = Progress(
            TextColumn("step {task.completed}/{task.total}"),
            BarColumn(bar_width=None),
            TextColumn("{task.fields[numbers]}"),
            TimeRemainingColumn(compact=True),
            console=console,
            transient=True,
            expand=True,
        )
        self._task = self._progress.add_task("", total=steps, numbers="")
        self._progress.start()

    def say(self, text: str) -> None:
        self._progress.console.print(text, highlight=False, markup=False)

    def step(self, event: Event) -> None:
        numbers = describe(event, self._smooth(event["loss"]))
        self._progress.update(self._task, completed=event["step"], numbers=numbers)

    def close(self) -> None:
        self._progress.stop()


class Smoothed:
    """An exponential mean that starts at its first value and ignores what is not finite."""

    def __init__(self) -> None:
        self._mean: float | None = None

    def __call__(self, value: float | None) -> float | None:
        if value is not None:
            self._mean = value if self._mean is None else SMOOTH * self._mean + (1 - SMOOTH) * value
        return self._mean


def describe(event: Event, loss: float | None) -> str:
    """loss 0.583 (0.61/0.55) |c| 12.1 skipped 0 1.2 it/s: smoothed loss, the last probes, c."""
    plus, minus, c = (event[key] for key in ("loss_plus", "loss_minus", "projected_grad"))
    probes = "not finite" if None in (*plus, *minus) else f"{plus[0]:.3f}/{minus[0]:.3f}"
    size = "-" if None in c else f"{math.sqrt(sum(x * x for x in c) / len(c)):.3g}"
    shown = "-" if loss is None else f"{loss:.4f}"
    skipped = f" skipped {event['skipped']}" if event["skipped"] else ""
    return f"loss {shown} ({probes}) |c| {size}{skipped} {1 / event['seconds']:.2f} it/s"


def in_words(event: Event) -> str:
    """accuracy 0.532, loss 1.1040 (1000 rows): the scores in the event's order"""
    scores = [f"{SCORES[key]} {_score(key, event[key])}" for key in event if key in SCORES]
    return f"{', '.join(scores)} ({event['rows']:,} rows)"


def _score(name: str, value: float | None) -> str:
    return "not finite" if value is None else f"{value:.{4 if name == 'loss' else 3}f}"


def narrator_for(steps: int, every: int) -> Narrator:
    """A live line on a terminal, plain lines elsewhere."""
    console = Console()
    if console.is_terminal and sys.stdout.isatty():
        return LiveNarrator(steps, console)
    return PlainNarrator(steps, every)
