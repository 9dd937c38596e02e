"""The journal: the scalars of every step, on disk before the weights move.

One JSON object per line. The first is the header: format, layout, seed, tuned parameters with their
ids, optimizer, fingerprints. Every further line is a step:

    {"step": 7, "lr": 0.0001, "loss_plus": [0.71], "loss_minus": [0.69], "projected_grad": [3.5]}

Lists run over directions; numbers are float32 in their shortest decimal form, null is not finite. A
step with a null in projected_grad changed nothing. Base model + start/ + journal are the weights, bit
for bit: the optimizer needs nothing but these lines.
"""

from __future__ import annotations

import json
import math
import os
import time
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

from zoft.engine.optimizers.measurement import Measurement
from zoft.errors import EnvironmentProblem
from zoft.system.atomic_io import lock

FORMAT, VERSION = "zoft-journal", 1
Header = dict[str, Any]

# What a replay needs to know (docs/journal-format.md); "tune", "data" and "noise" are told besides.
NEEDED = ("layout", "zoft", "seed", "base", "dtype", "optimizer", "parameters")


@dataclass(frozen=True, slots=True)
class Entry:
    """One step: what was measured, and the rate at which it was applied (if it was finite)."""

    measurement: Measurement
    lr: float


def read(path: Path) -> tuple[Header, list[Entry]]:
    """The header and all complete steps. A torn last line (power cut) is left out.

    Raises EnvironmentProblem for a file that is no journal, of a newer version, or with a gap.
    """
    header, entries, _ = parse(path, path.read_bytes())
    return header, entries


def missing_entries(header: Header) -> list[str]:
    """What a replay needs and the header does not have."""
    base = header.get("base", {})
    missing = [f"base.{key}" for key in ("name", "revision", "sha256") if key not in base]
    return [key for key in NEEDED if key not in header] or missing


class Journal:
    """An open journal. `append` returns when the line is with the kernel: a killed process loses
    nothing. A power cut loses at most `sync_seconds`; `sync` leaves nothing to lose."""

    def __init__(self, path: Path, sync_seconds: float) -> None:
        self._sync_seconds = sync_seconds
        self._file = path.open("ab", buffering=0)
        if not lock(self._file, wait=False):
            self._file.close()
            raise EnvironmentProblem(f"{path.parent} is in use by another zoft")
        self._synced = time.monotonic()

    @classmethod
    def create(cls, path: Path, header: Header, sync_seconds: float) -> Journal:
        """A new journal; an unfinished file of that name (no step in it) is replaced."""
        journal = cls(path, sync_seconds)
        try:
            os.ftruncate(journal._file.fileno(), 0)
            journal._write({"format": FORMAT, "version": VERSION, **header})
            journal.sync()
        except BaseException:
            journal.close()
            raise
        return journal

    @classmethod
    def reopen(cls, path: Path, sync_seconds: float) -> tuple[Journal, Header, list[Entry]]:
        """Go on with a journal: what it holds, after its torn last line is cut off."""
        journal = cls(path, sync_seconds)
        try:
            header, entries, good = parse(path, path.read_bytes())
        except EnvironmentProblem:
            journal.close()
            raise
        os.ftruncate(journal._file.fileno(), good)
        return journal, header, entries

    def append(self, entry: Entry) -> None:
        m = entry.measurement
        self._write(
            {
                "step": m.step,
                "lr": entry.lr,
                "loss_plus": m.loss_plus,
                "loss_minus": m.loss_minus,
                "projected_grad": m.projected_grad,
            }
        )
        if time.monotonic() - self._synced >= self._sync_seconds:
            self.sync()

    def sync(self) -> None:
        os.fsync(self._file.fileno())
        self._synced = time.monotonic()

    def close(self) -> None:
        self._file.close()

    def __enter__(self) -> Journal:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        at: TracebackType | None,
    ) -> None:
        self.sync()
        self.close()

    def _write(self, line: dict[str, Any]) -> None:
        text = as_line(line)
        try:
            written = self._file.write(text)
        except OSError as error:
            raise EnvironmentProblem(f"the journal cannot be written: {error.strerror}") from error
        if written != len(text):
            raise EnvironmentProblem("the journal cannot be written: no space left on device")


def as_line(values: dict[str, Any]) -> bytes:
    """A line of a journal: compact JSON, null for what is not finite."""
    return (json.dumps(nullable(values), allow_nan=False, separators=(",", ":")) + "\n").encode()


def parse(path: Path, content: bytes) -> tuple[Header, list[Entry], int]:
    """Header, steps, and the number of bytes that hold them: what is behind these is a torn line.

    Raises EnvironmentProblem, as `read` does.
    """
    lines = content.splitlines(keepends=True)
    if lines and not lines[-1].endswith(b"\n"):
        lines.pop()
    if not lines:
        raise EnvironmentProblem(f"{path} is empty: not a journal")
    header: Header = {}
    entries: list[Entry] = []
    good = 0
    for number, line in enumerate(lines):
        try:
            values = json.loads(line)
            if number == 0:
                header = _checked_header(path, values)
            else:
                entries.append(_entry(values, expected=number))
        except (ValueError, KeyError, TypeError) as error:
            torn = isinstance(error, json.JSONDecodeError | UnicodeDecodeError)
            if torn and 0 < number == len(lines) - 1:
                break
            raise EnvironmentProblem(f"{path}:{number + 1} is damaged: {error}") from error
        good += len(line)
    return header, entries, good


def _checked_header(path: Path, values: Any) -> Header:
    if not isinstance(values, dict) or values.get("format") != FORMAT:
        raise EnvironmentProblem(f"{path} is not a journal of zoft")
    if values["version"] > VERSION:
        raise EnvironmentProblem(
            f"{path} has version {values['version']}, this zoft reads up to {VERSION}: upgrade zoft"
        )
    return values


def _entry(values: dict[str, Any], expected: int) -> Entry:
    if values["step"] != expected:
        raise ValueError(f"step {values['step']} where {expected} belongs")
    measurement = Measurement(
        step=expected,
        loss_plus=_from_null(values["loss_plus"]),
        loss_minus=_from_null(values["loss_minus"]),
        projected_grad=_from_null(values["projected_grad"]),
    )
    return Entry(measurement, float(values["lr"]))


def nullable(value: Any) -> Any:
    """None for every number in `value` that is not finite: JSON has no word for it."""
    match value:
        case dict():
            return {key: nullable(x) for key, x in value.items()}
        case list() | tuple():
            return [nullable(x) for x in value]
        case float() if not math.isfinite(value):
            return None
        case _:
            return value


def _from_null(values: list[float | None]) -> tuple[float, ...]:
    return tuple(math.nan if x is None else float(x) for x in values)
