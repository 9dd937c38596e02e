"""COMPLETE: the list that closes a folder, every file in it with its size and its sha256."""

from __future__ import annotations

import hashlib
import json
import re
from pathlib import Path
from typing import Any

from zoft.system.atomic_io import write_atomically

COMPLETE = "COMPLETE"
_WEIGHTS = re.compile(r"(adapter_)?model(-\d+-of-\d+)?\.safetensors$")


def write(folder: Path) -> None:
    """List every file in `folder`. Raises OSError."""
    content = {
        path.relative_to(folder).as_posix(): {"size": path.stat().st_size, "sha256": sha256(path)}
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }
    (folder / COMPLETE).write_text(json.dumps(content, indent=2) + "\n")


def listed(folder: Path) -> dict[str, dict[str, Any]]:
    """File -> size and sha256 as they were when the folder was closed. Raises OSError, ValueError."""
    content: dict[str, dict[str, Any]] = json.loads((folder / COMPLETE).read_text())
    return content


def replace_text(folder: Path, name: str, text: str) -> None:
    """Another text for one file of a closed folder, and for its entry in the list. Raises OSError."""
    entry = {"size": len(text.encode()), "sha256": hashlib.sha256(text.encode()).hexdigest()}
    content = json.dumps({**listed(folder), name: entry}, indent=2) + "\n"
    for file, written in ((name, text), (COMPLETE, content)):
        write_atomically(folder / file, written)


def sizes_match(folder: Path) -> bool:
    """Whether every listed file is there with its size. Nothing is read but the list."""
    try:
        return all(
            (folder / name).stat().st_size == entry["size"]
            for name, entry in listed(folder).items()
        )
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return False


def intact(folder: Path) -> bool:
    """Whether every listed file is there with its size and its sha256."""
    return sizes_match(folder) and all(
        sha256(folder / name) == entry["sha256"] for name, entry in listed(folder).items()
    )


def weight_files(folder: Path) -> dict[str, str]:
    """The files of weights (a model's or an adapter's) with their listed sha256; empty for a folder
    that was not closed."""
    if not sizes_match(folder):
        return {}
    return {name: entry["sha256"] for name, entry in listed(folder).items() if _WEIGHTS.match(name)}


def weight_hashes(folder: Path) -> dict[str, str]:
    """The same, computed from the bytes."""
    files = (path for path in sorted(folder.iterdir()) if _WEIGHTS.match(path.name))
    return {path.name: sha256(path) for path in files}


def sha256(path: Path) -> str:
    """Of a file's bytes. Raises OSError."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
