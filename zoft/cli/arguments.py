"""What several verbs take: a recipe and changes to it, checked before anything slow begins."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated

import typer

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


def require_valid(recipe: str, overrides: Sequence[str] | None) -> None:
    """Raise RecipeError before the frameworks are imported, which takes seconds."""
    from zoft.recipe.load import load_recipe

    load_recipe(recipe, overrides or [])
