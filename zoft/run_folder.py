"""The folder of a run: what lies where, and whether a recipe may go on with what is there."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel

from zoft import checkpoint
from zoft.errors import EnvironmentProblem, RecipeError
from zoft.recipe.load import dump_recipe, load_recipe
from zoft.recipe.schema import Recipe

_Section = TypeVar("_Section", bound=BaseModel)

# What may change from one part of a run to the next: it moves no weight. (`train.steps` moves none
# under a constant rate.) A change of device is allowed, and said: c may differ in its last bits.
FREE = (
    "output_dir",
    "device",
    "data.eval",
    "data.test",
    "eval",
    "checkpoint",
    "journal",
    "logging",
)


@dataclass(frozen=True, slots=True)
class RunFolder:
    """runs/NAME and the files in it (ARCHITECTURE, "Files a run writes")."""

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
    def exists(self) -> bool:
        """Whether a run is here: its journal has begun, and it says how it was set up."""
        begun = self.journal.is_file() and self.journal.stat().st_size > 0
        return begun and self.resolved.is_file()

    def manifest(self) -> dict[str, Any]:
        """run.json, or nothing."""
        try:
            content = json.loads((self.path / "run.json").read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return {}
        return content if isinstance(content, dict) else {}

    def update_manifest(self, **values: Any) -> None:
        """Change some entries of run.json, atomically."""
        target = self.path / "run.json"
        temporary = target.with_suffix(".tmp")
        try:
            temporary.write_text(json.dumps({**self.manifest(), **values}, indent=2) + "\n")
            temporary.replace(target)
        except OSError as error:
            raise EnvironmentProblem(f"{target} cannot be written: {error.strerror}") from error

    def create(self, recipe_text: str, resolved: Recipe) -> None:
        """Make the folder and write both recipes."""
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            (self.path / "recipe.yaml").write_text(recipe_text, encoding="utf-8")
        except OSError as error:
            raise EnvironmentProblem(f"{self.path} cannot be written: {error.strerror}") from error
        self.write_resolved(resolved)

    def write_resolved(self, resolved: Recipe) -> None:
        temporary = self.resolved.with_suffix(".tmp")
        temporary.write_text(dump_recipe(resolved), encoding="utf-8")
        temporary.replace(self.resolved)

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

    def discard_measurements(self) -> None:
        """Delete what a run left that was killed before its journal began."""
        for path in (self.journal, self.metrics, self.path / "run.json"):
            path.unlink(missing_ok=True)
        shutil.rmtree(self.start, ignore_errors=True)


def run_of(path: Path) -> tuple[RunFolder, Path | None]:
    """The run that `path` names, by its folder or by one of its checkpoints.

    Raises EnvironmentProblem if there is none.
    """
    if RunFolder(path).exists:
        return RunFolder(path), None
    if RunFolder(path.parent).exists and path.is_dir():
        return RunFolder(path.parent), path
    raise EnvironmentProblem(f"{path} is neither a run nor a checkpoint of one")


def require_empty(folder: RunFolder) -> None:
    """Raises RecipeError, with the choices, if something is there."""
    if folder.path.is_dir() and any(folder.path.iterdir()):
        raise RecipeError(
            f"{folder.path} is not empty: --resume auto goes on with the run there, "
            "--output-dir DIR starts another, or delete it"
        )
    if folder.path.exists() and not folder.path.is_dir():
        raise RecipeError(f"{folder.path} is a file; output_dir must be a folder")


def keep_choices(recipe: Recipe, previous: Recipe) -> Recipe:
    """Replace every `auto` of the recipe by what the run chose before.

    Not validated: what no longer fits together, `require_same` can say better.
    """
    return _merged(recipe, previous)


def _merged(now: _Section, before: _Section) -> _Section:
    merged: dict[str, Any] = {}
    for name in type(now).model_fields:
        value, old = getattr(now, name), getattr(before, name)
        if isinstance(value, BaseModel) and isinstance(old, BaseModel):
            merged[name] = _merged(value, old)
        elif value == "auto":
            merged[name] = old
    return now.model_copy(update=merged)


def require_same(recipe: Recipe, previous: Recipe) -> None:
    """Raises RecipeError, a line per key, if the recipe would not repeat the run's first steps."""
    free: tuple[str, ...] = FREE
    if previous.optimizer.schedule == recipe.optimizer.schedule == "constant":
        free = (*FREE, "train.steps")
    now, before = dict(_leaves(recipe)), dict(_leaves(previous))
    problems = [
        f"{key}: the run was started with {before.get(key)!r}, the recipe says {now.get(key)!r}"
        for key in dict.fromkeys([*before, *now])
        if before.get(key) != now.get(key)
        and not any(key == f or key.startswith(f"{f}.") for f in free)
    ]
    if problems:
        raise RecipeError(
            "\n".join(
                [*problems, "set it back to go on with the run, or choose another output_dir"]
            )
        )


def _leaves(section: BaseModel, prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name in type(section).model_fields:
        value = getattr(section, name)
        if isinstance(value, BaseModel):
            yield from _leaves(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value
