"""The journal: the scalars of every step, on disk before the weights move.

One JSON object per line. The first is the header: format, layout, seed, tuned parameters with their
ids, optimizer, fingerprints. Every further line is a step:

    {"step": 7, "lr": 0.0001, "loss_plus": [0.71], "loss_minus": [0.69], "projected_grad": [3.5],
     "crc32": "89abcdef"}

Lists run over directions; numbers are float32 in their shortest decimal form, null is not finite. A
step with a null in projected_grad changed nothing. The checksum is over this line and all before it
(checksum.py); a journal that was begun without any goes on without. Base model + start/ + journal are
the weights, bit for bit: the optimizer needs nothing but these lines.
"""

from __future__ import annotations

import json
import math
import os
import time
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple

from zoft.engine.optimizers.measurement import Measurement
from zoft.errors import EnvironmentProblem
from zoft.runs.checksum import CHAIN, KEY, beginning, checked, marked, protected, torn, unwritten
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


class Content(NamedTuple):
    """What a journal holds: `size` bytes, behind which a torn line may be. `checksum` is that of the
    last line; None if the journal was begun without checksums."""

    header: Header
    entries: list[Entry]
    size: int
    checksum: int | None


def read(path: Path) -> tuple[Header, list[Entry]]:
    """The header and all complete steps. A torn last line (power cut) is left out.

    Raises EnvironmentProblem for a file that is no journal, of a newer version, with a gap, or with
    a line whose checksum is not the right one.
    """
    found = parse(path, path.read_bytes())
    return found.header, found.entries


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
        self._checksum: int | None = None  # of the last line
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
            header = {"format": FORMAT, "version": VERSION, **header}
            header[CHAIN] = beginning(as_line(header))
            journal._write(header_line(header))
            journal._checksum = int(header[CHAIN], 16)
            journal.sync()
        except BaseException:
            journal.close()
            raise
        return journal

    @classmethod
    def reopen(
        cls, path: Path, sync_seconds: float, most: int | None = None
    ) -> tuple[Journal, Header, list[Entry]]:
        """Go on with a journal: what it holds, after its torn last line, and all steps after the first
        `most`, are cut off."""
        journal = cls(path, sync_seconds)
        try:
            content = path.read_bytes()
            found = parse(path, content)
            if most is not None and len(found.entries) > most:
                found = parse(path, b"".join(content.splitlines(keepends=True)[: 1 + most]))
        except EnvironmentProblem:
            journal.close()
            raise
        os.ftruncate(journal._file.fileno(), found.size)
        journal._checksum = found.checksum
        return journal, found.header, found.entries

    def append(self, entry: Entry) -> None:
        """Write down a step. Raises EnvironmentProblem if the disk refuses."""
        m = entry.measurement
        line = as_line(
            {
                "step": m.step,
                "lr": entry.lr,
                "loss_plus": m.loss_plus,
                "loss_minus": m.loss_minus,
                "projected_grad": m.projected_grad,
            }
        )
        if self._checksum is not None:
            line, self._checksum = marked(line, self._checksum)
        self._write(line)
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

    def _write(self, line: bytes) -> None:
        try:
            written = self._file.write(line)
        except OSError as error:
            raise EnvironmentProblem(f"the journal cannot be written: {error.strerror}") from error
        if written != len(line):
            raise EnvironmentProblem("the journal cannot be written: no space left on device")


def header_line(header: Header) -> bytes:
    """The first line of a journal: with its checksum, if the lines behind it have some."""
    line = as_line(header)
    return marked(line, 0)[0] if protected(header) else line


def as_line(values: dict[str, Any]) -> bytes:
    """An object as a line: compact JSON, null for what is not finite."""
    return (json.dumps(nullable(values), allow_nan=False, separators=(",", ":")) + "\n").encode()


def parse(path: Path, content: bytes) -> Content:
    """Read a journal's bytes; `path` is for messages. Raises EnvironmentProblem, as `read` does."""
    *lines, tail = content.split(b"\n")
    if not lines:
        raise EnvironmentProblem(f"{path} is empty: not a journal")
    header, checksum = _header(path, lines[0])
    entries: list[Entry] = []
    size = len(lines[0]) + 1
    for step, line in enumerate(lines[1:], start=1):
        try:
            entry, checksum = _step(line, step, checksum)
        except (ValueError, KeyError, TypeError) as error:
            garbled = isinstance(error, json.JSONDecodeError | UnicodeDecodeError)
            if step == len(lines) - 1 and (unwritten(line) if checksum is not None else garbled):
                return Content(header, entries, size, checksum)
            raise _damaged(path, step, error) from error
        entries.append(entry)
        size += len(line) + 1
    if tail and checksum is not None and not torn(tail, checksum):
        raise _damaged(path, len(lines), "it has no newline, and is not the beginning of a line")
    return Content(header, entries, size, checksum)


def _header(path: Path, line: bytes) -> tuple[Header, int | None]:
    """The header, and what the first step's checksum continues from, if the journal has checksums."""
    chain = None
    try:
        values = json.loads(line)
        if isinstance(values, dict) and protected(values):
            checked(line, 0)
            chain = int(values[CHAIN], 16)
            del values[KEY]
        if not isinstance(values, dict) or values.get("format") != FORMAT:
            raise EnvironmentProblem(f"{path} is not a journal of zoft")
        if values["version"] > VERSION:
            raise EnvironmentProblem(
                f"{path} has version {values['version']}, this zoft reads up to {VERSION}: upgrade zoft"
            )
    except (ValueError, KeyError, TypeError) as error:
        raise EnvironmentProblem(f"{path}:1 is damaged: {error}") from error
    return values, chain


def _step(line: bytes, step: int, before: int | None) -> tuple[Entry, int | None]:
    """A step's line, and its checksum, which continues from `before` (None: it must have none)."""
    values = json.loads(line)
    entry = _entry(values, expected=step)
    if before is not None:
        return entry, checked(line, before)
    if KEY in values:
        raise ValueError("it has a checksum, and the header has none")
    return entry, None


def _damaged(path: Path, step: int, reason: object) -> EnvironmentProblem:
    return EnvironmentProblem(
        f"{path}:{step + 1} is damaged: {reason}; cut the file before this line to go on from step "
        f"{step - 1}"
    )


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
