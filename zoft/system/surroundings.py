"""What a command relies on wherever it runs: streams that take any text, a home, places for caches."""

from __future__ import annotations

import io
import os
import sys
import tempfile
import warnings
from pathlib import Path

# What compiles or draws keeps files in the home, and fails or complains where it cannot.
CACHES = {"NUMBA_CACHE_DIR": "numba", "TRITON_CACHE_DIR": "triton", "MPLCONFIGDIR": "matplotlib"}


def settle() -> None:
    """Mend what a service, a container or a pipe may lack; once, before heavy imports."""
    _open_streams()
    _require_home()


def hush() -> None:
    """Keep what libraries warn of from the screen, unless the user asks for it: it is for those who
    write code, and what matters zoft says itself."""
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    if not sys.warnoptions:
        warnings.simplefilter("ignore")


def leave_stdout() -> None:
    """Drop what stdout still holds, so that Python does not fail over it again as it ends."""
    descriptor = os.open(os.devnull, os.O_WRONLY)
    os.dup2(descriptor, 1)
    os.close(descriptor)


def _open_streams() -> None:
    """Give closed streams /dev/null (else the first file that is opened gets the number of stdout, and
    what libraries print), and replace what an encoding cannot show."""
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        stream = getattr(sys, name)
        if stream is None:
            setattr(
                sys,
                name,
                os.fdopen(number, "w" if number else "r", encoding="utf-8", closefd=False),
            )
        elif number and isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace" if name == "stdout" else "backslashreplace")


def _require_home() -> None:
    """A HOME where the system knows none, and caches elsewhere where it cannot be written."""
    try:
        home = Path.home()
    except RuntimeError:  # neither HOME nor an entry for this user
        home = _temporary()
        os.environ["HOME"] = str(home)
    cache = Path(os.environ.get("XDG_CACHE_HOME") or home / ".cache")
    if not (_writable(home) and _writable(cache)):
        for variable, name in CACHES.items():
            if variable not in os.environ:
                os.environ[variable] = str(_temporary() / name)


def _temporary() -> Path:
    """A folder of this user's alone: compiled code is loaded from it."""
    folder = Path(tempfile.gettempdir(), f"zoft-{os.getuid()}")
    folder.mkdir(mode=0o700, exist_ok=True)
    found = folder.lstat()
    if folder.is_symlink() or found.st_uid != os.getuid() or found.st_mode & 0o022:
        return Path(tempfile.mkdtemp(prefix="zoft-"))
    return folder


def _writable(folder: Path) -> bool:
    """Whether the folder takes files, or can be made."""
    there = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    return there.is_dir() and os.access(there, os.W_OK | os.X_OK)
