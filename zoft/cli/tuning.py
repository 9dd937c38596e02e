"""Verbs about a recipe's run: train, eval, plan, range."""

from __future__ import annotations

from typing import Annotated

import typer

from zoft.cli.arguments import Overrides, RecipeArgument, require_demo, require_valid
from zoft.cli.imports import quiet_imports
from zoft.errors import RecipeError


def train(
    recipe: RecipeArgument,
    overrides: Overrides = None,
    resume: Annotated[
        str,
        typer.Option(
            metavar="none|auto|PATH",
            help="none: a new run; auto: go on with the run in the output folder, if there is one; "
            "PATH: go on with the run that this folder or checkpoint belongs to.",
        ),
    ] = "none",
    output_dir: Annotated[
        str | None,
        typer.Option(metavar="DIR", help="The run's folder, instead of the recipe's."),
    ] = None,
    yes: Annotated[
        bool, typer.Option("--yes", help="Fetch the demo, if the recipe needs it: do not ask.")
    ] = False,
) -> None:
    """Example: zoft train quickstart train.steps=300 --resume auto

    Tune a model by a recipe. A killed run resumes bit for bit with --resume auto.
    """
    read = require_valid(recipe, overrides)
    require_demo(read, yes)
    with quiet_imports():
        from zoft.training.run import train as run_train

    run_train(recipe, overrides or [], resume=resume, output_dir=output_dir, recipe=read)


def evaluate(
    target: Annotated[
        str,
        typer.Argument(metavar="TARGET", help="A run, a checkpoint, an adapter or a base model."),
    ],
    recipe: RecipeArgument,
    overrides: Overrides = None,
) -> None:
    """Example: zoft eval runs/quickstart quickstart data.eval.limit=200

    Score a run, checkpoint, adapter or base model on the recipe's eval and test sets.
    """
    read = require_valid(recipe, overrides)
    with quiet_imports():
        from zoft.inference.evaluate import evaluate as run_evaluate

    run_evaluate(target, recipe, overrides or [], recipe=read)


def plan(
    recipe: RecipeArgument,
    overrides: Overrides = None,
    json: Annotated[bool, typer.Option("--json", help="Print it as JSON: bytes, seconds.")] = False,
) -> None:
    """Example: zoft plan quickstart tune.method=lora memory.device_budget=2GiB

    Say what a recipe needs, from the model's config alone: memory by item, seconds (estimated), what
    other settings would take, and what back-propagation would.
    """
    read = require_valid(recipe, overrides)
    with quiet_imports():
        from zoft.planning.tables import plan as run_plan
        from zoft.training.warm_start import tokenizer_for, warm_start

    found = {"begin": warm_start, "tokenizer": tokenizer_for}
    run_plan(recipe, overrides or [], as_json=json, recipe=read, **found)


def range_test(
    recipe: RecipeArgument,
    overrides: Overrides = None,
    plot: Annotated[
        str | None, typer.Option(metavar="FILE", help="Draw it: a .png, .svg or .pdf file.")
    ] = None,
    groups: Annotated[
        bool,
        typer.Option(
            "--groups",
            help="Measure instead where learning pays: signal, noise and curvature by kind of module "
            "and third of depth.",
        ),
    ] = False,
    directions: Annotated[
        int | None, typer.Option(metavar="K", min=2, help="With --groups: of each, 8 by default.")
    ] = None,
    rows: Annotated[
        int | None,
        typer.Option(metavar="B", min=2, help="With --groups: in a pass, 32 by default."),
    ] = None,
) -> None:
    """Example: zoft range quickstart --plot range.png

    Try perturbations of many lengths on a recipe's model and data, and suggest optimizer.perturbation
    and optimizer.lr. No step is taken, and no run folder is made.
    """
    if groups and plot is not None:
        raise RecipeError(
            "--plot draws the table of perturbations, which --groups does not measure"
        )
    if not groups and (directions, rows) != (None, None):
        raise RecipeError("--directions and --rows are of --groups, which is not given")
    with quiet_imports():
        from zoft.training.range.groups import range_groups
        from zoft.training.range.rates import range_test as run_range_test

    if groups:
        range_groups(recipe, overrides or [], directions=directions or 8, rows=rows or 32)
    else:
        run_range_test(recipe, overrides or [], plot=plot)
