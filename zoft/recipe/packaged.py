"""The recipes that are shipped with zoft."""

from __future__ import annotations

from pathlib import Path


def recipe_folder() -> Path:
    """Inside an installed package, or the top-level `recipes/` of a checkout."""
    package = Path(__file__).resolve().parents[1]
    installed = package / "packaged_recipes"
    return installed if installed.is_dir() else package.parent / "recipes"


def names() -> list[str]:
    return sorted(path.stem for path in recipe_folder().glob("*.yaml"))


def path_of(name: str) -> Path | None:
    """None for a name that is not in `names()`."""
    return recipe_folder() / f"{name}.yaml" if name in names() else None


def summary(name: str) -> str:
    """The first comment line of the recipe, without its mark; empty if it has none."""
    lines = (recipe_folder() / f"{name}.yaml").read_text(encoding="utf-8").splitlines()
    return next((line.lstrip("# ") for line in lines if line.startswith("#")), "")
