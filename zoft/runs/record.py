"""What a run's folder says of the run, read without any framework. What is missing or broken is None."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from zoft.errors import EnvironmentProblem, ZoftError
from zoft.recipe.load import load_recipe
from zoft.recipe.schema import Recipe
from zoft.runs.metrics import Event, primary_metric, read_events
from zoft.system.atomic_io import lock

MARKS = ("run.json", "resolved.yaml", "journal.jsonl")  # a folder with one of these is a run


@dataclass(frozen=True)
class RunRecord:
    """A run that was read; `events` are those of metrics.jsonl."""

    path: Path
    manifest: dict[str, Any]
    recipe: Recipe | None
    events: list[Event]

    @property
    def name(self) -> str:
        return self.path.resolve().name

    @property
    def broken(self) -> str | None:
        """What is missing to go on with it, or to read it."""
        if not self.manifest:
            return "run.json cannot be read"
        if self.recipe is None:
            return "resolved.yaml cannot be read"
        return None if (self.path / "journal.jsonl").is_file() else "no journal.jsonl"

    @cached_property
    def status(self) -> str:
        """finished, running, interrupted, diverged, failed; killed: it says running, but is not."""
        if self.broken:
            return "broken"
        status = str(self.manifest.get("status", "unknown"))
        return "killed" if status == "running" and not _is_written(self.path) else status

    @property
    def step(self) -> int:
        taken = self.of("train")
        return int(taken[-1]["step"] if taken else self.manifest.get("step", 0))

    @property
    def steps(self) -> int | None:
        return self.recipe.train.steps if self.recipe else None

    @property
    def forward_passes(self) -> int:
        """Of whole batches, evaluations left out; a paired pass counts as the two that it replaces."""
        if self.recipe is None:
            return 0
        if self.manifest.get("probed") is False:  # first-order tuning, by tune.tail
            return self.step
        optimizer = self.recipe.optimizer
        probes = optimizer.directions * 2 if optimizer.sides == 2 else optimizer.directions + 1
        return self.step * probes

    @property
    def zero_shot(self) -> Event | None:
        return next((event for event in self.of("eval") if event["step"] == 0), None)

    @property
    def tail(self) -> Event | None:
        """The score of the solved rows of the head, before the first step."""
        return next(reversed(self.of("tail")), None)

    @property
    def course(self) -> list[Event]:
        """The evaluations from where the steps began: with a tail, at its score."""
        tail, scored = self.tail, self.of("eval")
        return [tail, *(e for e in scored if e["step"])] if tail else scored

    @property
    def last(self) -> Event | None:
        """The newest evaluation after the start."""
        return next((event for event in reversed(self.of("eval")) if event["step"] > 0), None)

    @property
    def best(self) -> Event | None:
        """The best evaluation after the start, by the metric of the last one."""
        if self.last is None:
            return None
        after = [event for event in self.of("eval") if event["step"] > 0]
        return next(iter(best_first(after, primary_metric(self.last)[0])), None)

    @property
    def seconds(self) -> float:
        """Wall time of all its parts; of one that is not over, of the steps and evaluations."""
        told = self.manifest.get("seconds")
        return float(told or sum(event.get("seconds") or 0 for event in self.events))

    @property
    def peak_memory_bytes(self) -> int | None:
        return self.manifest.get("peak_memory_bytes")

    def of(self, kind: str) -> list[Event]:
        return [event for event in self.events if event["event"] == kind]

    def size(self) -> int:
        """Bytes on the disk."""
        return sum(f.stat().st_size for f in self.path.rglob("*") if f.is_file())


def read_run(path: Path) -> RunRecord:
    """Raises EnvironmentProblem if there is no run."""
    if not any((path / mark).is_file() for mark in MARKS):
        raise EnvironmentProblem(f"{path} is not a run; zoft runs ls DIR lists those of a folder")
    try:
        recipe = load_recipe(path / "resolved.yaml")
    except ZoftError:
        recipe = None
    try:
        events = read_events(path / "metrics.jsonl")
    except OSError:
        events = []
    return RunRecord(path, read_manifest(path), recipe, events)


def read_manifest(path: Path) -> dict[str, Any]:
    """Read run.json of a run's folder; empty if it is missing or damaged."""
    try:
        content = json.loads((path / "run.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}


def best_first(evaluations: Iterable[Event], metric: str) -> list[Event]:
    """Sort evaluations from best to worst: by `metric`, then loss, then step.

    Left out are those whose loss was not finite and those without that metric, which a resumed run
    may have changed.
    """
    sign = 1 if metric == "loss" else -1
    scored = [e for e in evaluations if None not in (e.get("loss"), e.get(metric))]
    return sorted(scored, key=lambda e: (sign * e[metric], e["loss"], e["step"]))


def find_runs(folder: Path) -> list[RunRecord]:
    """The runs in a folder, the newest first. Raises EnvironmentProblem if there is no folder."""
    if not folder.is_dir():
        raise EnvironmentProblem(f"{folder} is not a folder")
    found = [
        read_run(path)
        for path in folder.iterdir()
        if path.is_dir() and any((path / mark).is_file() for mark in MARKS)
    ]
    return sorted(found, key=lambda run: (_begun(run), run.name), reverse=True)


def leaves(section: BaseModel, prefix: str = "") -> Iterator[tuple[str, Any, Any]]:
    """Every setting below a section: its key, its value and the schema's default."""
    for name, field in type(section).model_fields.items():
        value = getattr(section, name)
        if isinstance(value, BaseModel):
            yield from leaves(value, f"{prefix}{name}.")
        else:
            default = None if field.is_required() else field.get_default(call_default_factory=True)
            yield f"{prefix}{name}", value, default


def _begun(run: RunRecord) -> float:
    return max((run.path / mark).stat().st_mtime for mark in MARKS if (run.path / mark).exists())


def _is_written(path: Path) -> bool:
    """Whether a process holds the run's journal."""
    try:
        with (path / "journal.jsonl").open("rb") as journal:
            return not lock(journal, shared=True, wait=False)
    except OSError:
        return False
