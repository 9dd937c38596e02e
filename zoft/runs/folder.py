"""The folder of a run: what lies where, and whether a recipe may go on with what is there."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from zoft.errors import EnvironmentProblem, RecipeError
from zoft.recipe.load import dump_recipe, load_recipe
from zoft.recipe.schema import Recipe
from zoft.recipe.sections.data import DataSource
from zoft.runs import checkpoint
from zoft.runs.journal import nullable
from zoft.runs.record import leaves, read_manifest
from zoft.system.atomic_io import existing, lock, write_atomically

# What a run writes before its journal begins, and may write again if it was killed there.
BEGINNING = {
    "recipe.yaml", "resolved.yaml", "run.json", "start", "journal.jsonl", "working-copy.bin"
}  # fmt: skip

# Where base, data and adapter lie, which may have moved: `resume` compares what they hold.
MOVED = re.compile(r"model\.(name|revision)|tune\.adapter|data\.train\.(\d+\.)?(path|revision)")

# What may change from one part of a run to the next: it moves no weight. (`train.steps` moves none
# under a constant rate.) The device and the micro-batch may change the last bits of a loss, which
# `resume` says; where weights wait changes none.
FREE = (
    "device",
    "model.residency",
    "memory",
    "offload",
    "train.micro_batch_size",
    "train.max_nonfinite",
    "output_dir",
    "data.eval",
    "data.test",
    "eval",
    "checkpoint",
    "journal",
    "logging",
    "hub",
)


@dataclass(frozen=True, slots=True)
class RunFolder:
    """runs/NAME and the files in it (docs/train.md#the-runs-folder)."""

    path: Path

    @property
    def journal(self) -> Path:
        return self.path / "journal.jsonl"

    @property
    def metrics(self) -> Path:
        return self.path / "metrics.jsonl"

    @property
    def resolved(self) -> Path:
        return self.path / "resolved.yaml"

    @property
    def start(self) -> Path:
        return self.path / "start"

    @property
    def final(self) -> Path:
        return self.path / "final"

    @property
    def working(self) -> Path:
        """The streamed weights as they are now: disposable, for the journal has them."""
        return self.path / "working-copy.bin"

    @property
    def exists(self) -> bool:
        """Whether a run is here: its journal has a header, and it says how it was set up."""
        if not (self.journal.is_file() and self.resolved.is_file()):
            return False
        with self.journal.open("rb") as journal:
            return journal.readline().endswith(b"\n")

    @contextmanager
    def claimed(self) -> Iterator[None]:
        """Make the folder, and let no other process begin a run in it meanwhile."""
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            handle = os.open(self.path, os.O_RDONLY)
        except OSError as error:
            raise EnvironmentProblem(f"{self.path} cannot be written: {error.strerror}") from error
        try:
            # A run that exists began, and perhaps ended, while we were loading.
            if not lock(handle, wait=False) or self.exists:
                raise EnvironmentProblem(f"{self.path} is in use by another zoft")
            yield
            os.fsync(handle)
        finally:
            os.close(handle)

    def manifest(self) -> dict[str, Any]:
        """Read run.json; empty if it is missing or damaged."""
        return read_manifest(self.path)

    def update_manifest(self, **values: Any) -> None:
        """Change some entries of run.json, atomically."""
        target = self.path / "run.json"
        content = nullable({**self.manifest(), **values})
        try:
            write_atomically(target, json.dumps(content, indent=2, allow_nan=False) + "\n")
        except OSError as error:
            raise EnvironmentProblem(f"{target} cannot be written: {error.strerror}") from error

    def write_resolved(self, resolved: Recipe) -> None:
        """Replace resolved.yaml; on the disk before anything relies on it."""
        write_atomically(self.resolved, dump_recipe(resolved))

    def previous(self) -> Recipe:
        """The recipe of the run that is here, with every automatic choice that it made."""
        return load_recipe(self.resolved)

    def newest_checkpoint(self, wanted: Path | None = None) -> Path | None:
        """The newest checkpoint whose bytes are as they were written, or the `wanted` one."""
        for folder in reversed(checkpoint.find(self.path)):
            if (wanted is None or folder == wanted) and checkpoint.verify(folder):
                return folder
        if wanted is not None:
            raise EnvironmentProblem(f"{wanted} is not a complete checkpoint")
        return None

    def is_a_mere_beginning(self) -> bool:
        """Whether all that is here was left by a run that was killed before its journal began."""
        names = {path.name for path in self.path.iterdir() if path.suffix != ".partial"}
        return "recipe.yaml" in names and names <= BEGINNING


def run_of(path: Path) -> tuple[RunFolder, Path | None]:
    """The run that `path` names, by its folder or by one of its checkpoints.

    Raises EnvironmentProblem if there is none.
    """
    path = path.expanduser()
    if RunFolder(path).exists:
        return RunFolder(path), None
    if RunFolder(path.parent).exists and path.is_dir():
        return RunFolder(path.parent), path
    raise EnvironmentProblem(f"{path} is neither a run nor a checkpoint of one")


def require_empty(folder: RunFolder) -> None:
    """Raises RecipeError, with the choices, if something is there that a new run could spoil,
    EnvironmentProblem if nothing may be written there."""
    there = folder.path.is_dir() and any(folder.path.iterdir())
    if there and (folder.exists or not folder.is_a_mere_beginning()):
        raise RecipeError(
            f"{folder.path} is not empty: --resume auto goes on with the run there, "
            "--output-dir DIR starts another, or delete it"
        )
    if folder.path.exists() and not folder.path.is_dir():
        raise RecipeError(f"{folder.path} is a file; output_dir must be a folder")
    above = existing(folder.path)
    if not above.is_dir():
        raise RecipeError(f"output_dir: {folder.path} cannot be made: {above} is a file")
    if not os.access(above, os.W_OK | os.X_OK):
        raise EnvironmentProblem(f"{folder.path} cannot be written: no rights in {above}")


def require_same(recipe: Recipe, previous: Recipe) -> None:
    """Raises RecipeError, a line per key, if the recipe would not repeat the run's first steps."""
    free: tuple[str, ...] = FREE
    if previous.optimizer.schedule == recipe.optimizer.schedule == "constant":
        free = (*FREE, "train.steps")
    now, before = dict(_settings(recipe)), dict(_settings(previous))
    problems = [
        f"{key}: the run was started with {before.get(key)!r}, the recipe says {now.get(key)!r}"
        for key in dict.fromkeys([*before, *now])
        if before.get(key) != now.get(key)
        and not MOVED.fullmatch(key)
        and not any(key == f or key.startswith(f"{f}.") for f in free)
    ]
    if problems:
        raise RecipeError(
            "\n".join(
                [*problems, "set it back to go on with the run, or choose another output_dir"]
            )
        )


def _settings(recipe: Recipe) -> Iterator[tuple[str, Any]]:
    """Every setting by its key; those of a mixture's sources by their number."""
    for key, value, _ in leaves(recipe):
        sources = value if isinstance(value, list) else []
        if sources and all(isinstance(source, DataSource) for source in sources):
            for number, source in enumerate(sources):
                yield from ((name, v) for name, v, _ in leaves(source, f"{key}.{number}."))
        else:
            yield key, value
