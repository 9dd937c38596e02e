"""Files and folders that appear whole or not at all, and locks on files.

What was written is on the disk before it gets its name, and the name before the call returns.
"""

from __future__ import annotations

import fcntl
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO


def write_atomically(file: Path, content: str | bytes) -> None:
    """Write or replace a file; text is UTF-8. Raises OSError, and leaves what was there."""
    with staged(file) as partial:
        partial.write_bytes(content.encode() if isinstance(content, str) else content)


@contextmanager
def staged(place: Path) -> Iterator[Path]:
    """Yield a path to write a file or a folder to, which then replaces `place`.

    If the block raises, it is deleted and `place` stays as it was. A process that is killed leaves
    `.NAME.partial`, which the next call for `place` deletes. Raises OSError.
    """
    partial = place.with_name(f".{place.name}.partial")
    replaced = place.with_name(f".{place.name}.replaced.partial")
    for leftover in (partial, replaced):
        delete(leftover)
    try:
        yield partial
        for path in (*partial.rglob("*"), partial):
            _sync(path)
        if place.is_dir():  # rename() replaces files only
            place.rename(replaced)
        partial.rename(place)
        _sync(place.parent)
        delete(replaced)
    finally:
        if replaced.exists() and not place.exists():  # interrupted between the two renames
            replaced.rename(place)
        delete(partial)


def existing(path: Path) -> Path:
    """The path, or the closest folder above it that is there."""
    return next(place for place in (path, *path.absolute().parents) if place.exists())


def delete(path: Path) -> None:
    """Delete a file or a folder, if there is one."""
    if path.is_dir():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


def lock(file: int | IO[bytes] | IO[str], *, shared: bool = False, wait: bool = True) -> bool:
    """Lock an open file or folder against other processes until it is closed.

    Returns False if another holds it and we do not `wait`. Shared locks exclude only exclusive ones.
    Raises OSError where the file system has no locks.
    """
    kind = fcntl.LOCK_SH if shared else fcntl.LOCK_EX
    try:
        fcntl.flock(file, kind if wait else kind | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
