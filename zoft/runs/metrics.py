"""What a run tells programs: metrics.jsonl, and the score that stands for an evaluation."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

from zoft.engine.optimizers.measurement import rms
from zoft.errors import EnvironmentProblem
from zoft.runs.journal import nullable
from zoft.system.atomic_io import write_atomically

Event = dict[str, Any]
# What an evaluation may have measured, as it is called in a line.
SCORES = {"accuracy": "accuracy", "f1": "f1", "exact_match": "exact match", "loss": "loss"}


class Metrics:
    """metrics.jsonl: one object per event, {"event": ..., "step": ..., ...}; NaN is null."""

    def __init__(self, path: Path, after: Callable[[], None] = lambda: None) -> None:
        """`after` is called behind every event that was written."""
        self.path, self.after = path, after

    def write(self, event: str, step: int, **values: Any) -> Event:
        record: Event = nullable({"event": event, "step": step, **values})
        try:
            with self.path.open("a", encoding="utf-8") as file:
                file.write(json.dumps(record) + "\n")
        except OSError as error:
            raise EnvironmentProblem(f"{self.path} cannot be written: {error.strerror}") from error
        self.after()
        return record

    def read(self) -> list[Event]:
        """Read all whole events."""
        return read_events(self.path)

    def rewind(self, step: int, *, other_set: bool = False) -> None:
        """Forget what lies beyond `step` (a power cut can leave the journal behind the metrics).

        With an `other_set` to be scored from here on, the scores so far compare with none to come:
        they stay as events of the kind `eval_before`.
        """
        kept = [e for e in self.read() if e["step"] <= step and e["event"] != "final"]
        if other_set:
            kept = [{**e, "event": "eval_before"} if e["event"] == "eval" else e for e in kept]
        text = "".join(json.dumps(event) + "\n" for event in kept)
        write_atomically(self.path, text)


def read_events(path: Path) -> list[Event]:
    """Read the whole events of metrics.jsonl; none if there is no file. Raises OSError.

    A line that is torn or damaged hides no other.
    """
    found: list[Event] = []
    for line in path.read_bytes().splitlines(keepends=True) if path.exists() else ():
        try:
            event = json.loads(line) if line.endswith(b"\n") else None
        except ValueError:
            continue
        if isinstance(event, dict) and isinstance(event.get("step"), int) and "event" in event:
            found.append(event)
    return found


def in_words(event: Event) -> str:
    """accuracy 0.532, loss 1.1040 (1000 rows): the scores in the event's order"""
    scores = [f"{SCORES[key]} {_score(key, event[key])}" for key in event if key in SCORES]
    return f"{', '.join(scores)} ({event['rows']:,} rows)"


def _score(name: str, value: float | None) -> str:
    return "not finite" if value is None else f"{value:.{4 if name == 'loss' else 3}f}"


def primary_metric(event: Event) -> tuple[str, float | None]:
    """Return the name and value of the score that an evaluation is judged by: the event's first."""
    name = next(name for name in event if name in SCORES)
    return name, event[name]


def format_primary(event: Event) -> str:
    """Format the primary metric: accuracy 0.532, or loss 1.1040 where that is all there is."""
    name, value = primary_metric(event)
    digits = 4 if name == "loss" else 3
    return f"{name} not finite" if value is None else f"{name} {value:.{digits}f}"


def scalars(event: Event) -> dict[str, float]:
    """An event as trackers take it: train/loss, eval/accuracy ...; one number each.

    Of a list (one entry per direction or example) the mean, of projected_grad the root mean square;
    what is text or not finite is left out.
    """
    found: dict[str, float] = {}
    for key, value in event.items():
        if key == "projected_grad":
            value = rms(value)
        elif isinstance(value, list):
            value = sum(value) / len(value) if value and None not in value else None
        number = isinstance(value, int | float) and not isinstance(value, bool)
        if number and math.isfinite(value) and key != "step":
            found[f"{event['event']}/{key}"] = value
    return found
