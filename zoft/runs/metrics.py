"""What a run tells programs: metrics.jsonl, and the score that stands for an evaluation."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

from zoft.errors import EnvironmentProblem

Event = dict[str, Any]
# What an evaluation may have measured, as it is called in a line.
SCORES = {"accuracy": "accuracy", "f1": "f1", "exact_match": "exact match", "loss": "loss"}


class Metrics:
    """metrics.jsonl: one object per event, {"event": ..., "step": ..., ...}; NaN is null."""

    def __init__(self, path: Path, after: Callable[[], None] = lambda: None) -> None:
        """`after` is called behind every event that was written."""
        self.path, self.after = path, after

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
        self.after()
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
        if isinstance(value, list):
            whole = bool(value) and None not in value
            squares = [x * x for x in value] if whole and key == "projected_grad" else []
            mean = sum(squares or value) / len(value) if whole else None
            value = math.sqrt(mean) if mean is not None and squares else mean
        if isinstance(value, int | float) and not isinstance(value, bool) and key != "step":
            found[f"{event['event']}/{key}"] = value
    return found
