"""What several verbs take: a recipe and changes to it, checked before anything slow begins."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from zoft.recipe.schema import Recipe

RecipeArgument = Annotated[
    str, typer.Argument(metavar="RECIPE", help="A YAML file, or a packaged recipe's name.")
]
Overrides = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="SECTION.KEY=VALUE",
        help="Changes to the recipe: train.steps=300; ~data.test deletes.",
        show_default=False,
    ),
]


def place(text: str) -> Path:
    """A path as a shell means it, also where the shell left `~` as it was."""
    return Path(text).expanduser()


def require_valid(recipe: str, overrides: Sequence[str] | None) -> Recipe:
    """The recipe, or RecipeError before the frameworks are imported, which takes seconds."""
    from zoft.recipe.load import load_recipe

    return load_recipe(recipe, overrides or [])
