"""`zoft data preview|templates`: what a recipe's rows become, and the prompts that have a name."""

from __future__ import annotations

from typing import Annotated

import typer

from zoft.cli.arguments import Overrides, RecipeArgument
from zoft.cli.imports import quiet_imports


def preview(
    recipe: RecipeArgument,
    overrides: Overrides = None,
    number: Annotated[
        int, typer.Option("-n", min=0, metavar="ROWS", help="Examples to show of each set.")
    ] = 3,
) -> None:
    """Example: zoft data preview quickstart -n 2

    Show what the model will read, with what it learns marked, and what became of the rows.
    """
    with quiet_imports():
        from zoft.data.preview import preview as show
        from zoft.training.warm_start import tokenizer_for, warm_start

    show(recipe, overrides or [], number=number, begin=warm_start, tokenizer=tokenizer_for)


def templates() -> None:
    """Example: zoft data templates

    List the tasks whose prompt, label words and columns data.template takes by name.
    """
    from zoft.recipe.sections.tasks import TASKS

    for name, task in TASKS.items():
        typer.echo(f"{name:8}  {task.summary}")
        for line in task.template.splitlines():
            typer.echo(f"          | {line}")
        if task.labels:
            words = ", ".join(f"{label}: {word}" for label, word in task.labels.items())
            typer.echo(f"          labels {words}")
        if task.options:
            options = task.options if isinstance(task.options, str) else ", ".join(task.options)
            typer.echo(f"          options {options}")
        if task.columns:
            names = ", ".join(f"{role}: {column}" for role, column in task.columns.items())
            typer.echo(f"          columns {names}")
