"""What the base of a run is called where others find it: a folder here is of no use to them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from huggingface_hub import metadata_load

from zoft.data.sources import looks_local
from zoft.errors import RecipeError
from zoft.models.storage.fetch import local_folder
from zoft.models.storage.names import split_revision
from zoft.recipe.schema import Recipe


@dataclass(frozen=True, slots=True)
class Base:
    """The model that a run started from: its Hub id (None: it has none) and a commit.

    `license` holds `license`, `license_name` and `license_link` as the base's own card has them.
    """

    name: str | None
    revision: str | None = None
    license: Mapping[str, str] = field(default_factory=dict)


def is_local(name: str) -> bool:
    """Whether a model or a data set is a file or a folder here, which nobody else can load."""
    return name.endswith(".gguf") or looks_local(name) or Path(name).expanduser().exists()


def base_of(recipe: Recipe, found: Mapping[str, Any]) -> Base:
    """Hub id and revision, from the recipe alone; `found` is run.json's entry about the base, which
    knows the commit of a Hub model. Raises RecipeError if the base has no Hub id."""
    if recipe.hub.base_model:
        return Base(*split_revision(recipe.hub.base_model))
    name = recipe.model.name
    if is_local(name):
        folder = local_folder(name) or name
        raise RecipeError(
            f"the base model {name} is on this machine alone, and what is pushed has to name one that "
            "others can load: add hub.base_model=USER/BASE (to push the base first: hf upload "
            f"USER/BASE {folder})"
        )
    return Base(name, found.get("revision") or recipe.model.revision)


def base_here(recipe: Recipe, found: Mapping[str, Any]) -> Base:
    """The same for what stays here, where no Hub id is needed; with the license that the card of a
    local base names."""
    try:
        base = base_of(recipe, found)
    except RecipeError:
        base = Base(None)
    folder = local_folder(recipe.model.name)
    return Base(base.name, base.revision, license_beside(folder) if folder else {})


def license_of(card: Mapping[str, Any]) -> dict[str, str]:
    """The entries about the license in a card's metadata."""
    keys = ("license", "license_name", "license_link")
    return {key: card[key] for key in keys if isinstance(card.get(key), str)}


def license_beside(folder: Path) -> dict[str, str]:
    """The license that the README.md of a model's folder names; nothing where there is none."""
    try:
        return license_of(metadata_load(folder / "README.md") or {})
    except Exception:  # YAML's errors are of many kinds; a card that nobody can read names none
        return {}
