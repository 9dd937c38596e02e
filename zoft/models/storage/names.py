"""What a model's or an adapter's name on the command line or in a recipe stands for."""

from __future__ import annotations

from pathlib import Path


def split_revision(name: str) -> tuple[str, str | None]:
    """(Hub id, revision) of `owner/name@revision`. What is a path here, whatever it is called, and a
    name without @ have no revision."""
    path = name.startswith((".", "/", "~")) or name.endswith(".gguf")
    if path or Path(name).exists():
        return name, None
    repository, _, revision = name.partition("@")
    return repository, revision or None
