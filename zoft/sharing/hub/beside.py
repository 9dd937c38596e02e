"""Uploads beside a run, in a thread: one at a time, and of those that wait the newest alone."""

from __future__ import annotations

import os
import shutil
import threading
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from zoft.system.atomic_io import delete

PLACE = ".push"  # in the run's folder
NAME = "zoft-push"  # of the thread


@dataclass(frozen=True, slots=True)
class Upload:
    """A checkpoint, the folder with links to its files (the run may delete its own), and what sends
    that."""

    checkpoint: Path
    linked: Path
    send: Callable[[Path], None]


class Beside:
    """The uploads of a run that are under way (the first) or wait (the second, if there is one)."""

    def __init__(self) -> None:
        self._uploads: list[Upload] = []
        self._changed = threading.Condition()

    def add(self, checkpoint: Path, send: Callable[[Path], None]) -> None:
        """Call `send` with a copy of the checkpoint's folder once nothing else is under way. What
        waited until now does not follow any more."""
        linked = checkpoint.parent / PLACE / checkpoint.name
        delete(linked)
        shutil.copytree(checkpoint, linked, copy_function=_link)
        upload = Upload(checkpoint, linked, send)
        with self._changed:
            for older in self._uploads[1:]:
                delete(older.linked)
            self._uploads[1:] = [upload]
            if len(self._uploads) == 1:
                # A daemon: an answer that never comes does not keep the program from ending.
                threading.Thread(None, self._work, NAME, (upload,), daemon=True).start()

    @property
    def waiting(self) -> list[Path]:
        """The checkpoints that are not up yet."""
        with self._changed:
            return [upload.checkpoint for upload in self._uploads]

    def wait(self, check: Callable[[], None]) -> None:
        """Return when all are up; `check` is called often, and ends it by raising."""
        with self._changed:
            while self._uploads:
                self._changed.wait(0.1)
                check()

    def _work(self, upload: Upload | None) -> None:
        while upload:
            with suppress(Exception):  # `send` says itself what went wrong
                upload.send(upload.linked)
            with self._changed:
                delete(upload.linked)
                self._uploads.pop(0)
                upload = self._uploads[0] if self._uploads else None
                self._changed.notify_all()


def _link(source: str, target: str) -> None:
    """A second name for the file, where the file system has such; else a copy."""
    try:
        os.link(source, target)
    except OSError:
        shutil.copyfile(source, target)
