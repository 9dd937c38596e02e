"""Everything that zoft raises on purpose. The command line prints one line and picks the exit code.

ZoftError              1  unexpected
├── RecipeError        2  usage or recipe
├── DataError          3  data
├── EnvironmentProblem 4  files, network, authentication, disk, missing hardware
├── OutOfMemory        5  with the overrides that would fit
├── Diverged           6  too many non-finite losses in a row, or no other
└── Interrupted        130 / 143  resumable
"""

from __future__ import annotations

import errno
import os
import re

_DISK = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO, errno.EROFS, errno.EACCES, errno.EPERM)


_LONGEST = 400  # characters of a library's message


class ZoftError(Exception):
    """A failure that zoft can explain. `str(error)` is what the user reads."""

    exit_code = 1


class RecipeError(ZoftError):
    """The command line or the recipe is wrong; the message lists every problem, one a line."""

    exit_code = 2


class DataError(ZoftError):
    """A data set is missing, has the wrong columns, or holds no row that can be trained on."""

    exit_code = 3


class EnvironmentProblem(ZoftError):
    """Something outside the recipe is missing: a model, the network, rights, disk, a device."""

    exit_code = 4


class OutOfMemory(ZoftError):
    """The device or the host ran out of memory."""

    exit_code = 5


class Diverged(ZoftError):
    """`train.max_nonfinite` steps in a row, or all steps of a run, had a loss that is not finite."""

    exit_code = 6


class Interrupted(ZoftError):
    """SIGINT or SIGTERM arrived; the step was finished and the journal synced."""

    def __init__(self, message: str, exit_code: int) -> None:
        super().__init__(message)
        self.exit_code = exit_code


def lacks_memory(error: BaseException) -> bool:
    """Whether this is an allocator's error: Python's, torch's for a GPU or torch's for the host."""
    if isinstance(error, RuntimeError):  # torch's own class is one, its CPU allocator has none
        return bool(re.search("out of memory|allocate memory", str(error)))
    return isinstance(error, MemoryError)


def system_error(error: BaseException | None) -> OSError | None:
    """The refusal of a disk behind an error of a library's own class: full, broken, read-only."""
    while error is not None:
        found = re.search(r"\(os error (\d+)\)", str(error))  # as Rust writes it
        number = error.errno if isinstance(error, OSError) else int(found[1]) if found else None
        if number in _DISK:
            return OSError(number, os.strerror(number), getattr(error, "filename", None))
        error = error.__cause__ or error.__context__
    return None


def disk_words(error: OSError) -> str:
    """The system's reason in words: what most people call it."""
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return "the disk is full"
    return error.strerror or str(error)


def first_line(error: BaseException) -> str:
    """What went wrong, in one line: the first that the library wrote, with those behind it if it only
    announces them, or the error's name."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    if not lines:
        return repr(error)
    if not lines[0].endswith((":", ",")):
        return lines[0]
    text = " ".join(lines)
    return text if len(text) <= _LONGEST else f"{text[:_LONGEST]} ..."
