"""What a tracker's process writes down, and the run reads: RUN/trackers/NAME.json."""

from __future__ import annotations

import fcntl
import json
import os
from pathlib import Path
from typing import Any

from zoft.runs.metrics import Event


def place(run: Path) -> Path:
    """Where the trackers of a run keep what they have: NAME.json, NAME.log, and files of their own."""
    return run / "trackers"


def read_state(run: Path, name: str) -> dict[str, Any]:
    """`state`, `note` for people, `process` id, and in `sent` the newest step for each kind of event."""
    try:
        content = json.loads((place(run) / f"{name}.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}


class State:
    """NAME.json in the hands of the one process that may write it; its age is the last sign of life."""

    def __init__(self, run: Path, name: str) -> None:
        self._path = place(run) / f"{name}.json"
        self._lock = self._path.with_suffix(".lock").open("w")
        fcntl.flock(self._lock, fcntl.LOCK_EX)  # an earlier part of the run may still be sending
        self.values: dict[str, Any] = {"sent": {}, **read_state(run, name), "process": os.getpid()}

    def close(self) -> None:
        self._lock.close()

    def write(self, **values: Any) -> None:
        self.values |= values
        temporary = self._path.with_suffix(".tmp")
        temporary.write_text(json.dumps(self.values), encoding="utf-8")
        temporary.replace(self._path)

    def beat(self) -> None:
        os.utime(self._path)

    def is_new(self, event: Event) -> bool:
        """Whether no earlier part of the run has sent it (`final` may come again)."""
        kind, sent = event["event"], self.values["sent"]
        return kind == "final" or bool(event["step"] > sent.get(kind, -1))
