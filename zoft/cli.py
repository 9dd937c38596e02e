"""The command line: the only place that prints errors and picks exit codes (zoft/errors.py).

Nothing heavy is imported before a command needs it, so that `zoft --help` answers at once.
"""

from __future__ import annotations

import logging
import re
import sys
import tempfile
import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import typer

from zoft import __version__
from zoft.errors import EnvironmentProblem, RecipeError, ZoftError

NOISY = ("torchao", "torch.utils._pytree", "bitsandbytes.backends.cpu.ops")  # while imported

app = typer.Typer(
    name="zoft",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    help="""Example: zoft train quickstart optimizer.lr=3e-4

    Fine-tune language models with forward passes only: no gradients, inference memory.
    """,
)
recipes = typer.Typer(
    no_args_is_help=True,
    rich_markup_mode=None,
    help="""Example: zoft recipes cp quickstart mine.yaml

    The recipes that are shipped with zoft. `zoft train` takes their names as well as files.
    """,
    short_help="List, show or copy the packaged recipes.",
)
app.add_typer(recipes, name="recipes")

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
NameArgument = Annotated[str, typer.Argument(metavar="NAME", help="As `zoft recipes ls` says it.")]


@app.command(short_help="Tune a model by a recipe.")
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
) -> None:
    """Example: zoft train quickstart train.steps=300 --resume auto

    Tune a model by a recipe. A killed run resumes bit for bit with --resume auto.
    """
    with _quiet_imports():
        from zoft.run import train as run_train

    run_train(recipe, overrides or [], resume=resume, output_dir=output_dir)


@app.command("eval", short_help="Score a run, checkpoint, adapter or base model.")
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
    with _quiet_imports():
        from zoft.evaluate import evaluate as run_evaluate

    run_evaluate(target, recipe, overrides or [])


@app.command(short_help="Say what a recipe needs: memory, time, and what else would fit.")
def plan(
    recipe: RecipeArgument,
    overrides: Overrides = None,
    json: Annotated[bool, typer.Option("--json", help="Print it as JSON: bytes, seconds.")] = False,
) -> None:
    """Example: zoft plan quickstart tune.method=lora memory.device_budget=2GiB

    Say what a recipe needs, from the model's config alone: memory by item, seconds (estimated), what
    other settings would take, and what back-propagation would.
    """
    with _quiet_imports():
        from zoft.plan import plan as run_plan

    run_plan(recipe, overrides or [], as_json=json)


@app.command(short_help="Print the versions of zoft and of what it stands on.")
def version() -> None:
    """Example: zoft version

    Print the versions of zoft and of what it stands on, for a report.
    """
    from importlib.metadata import PackageNotFoundError
    from importlib.metadata import version as installed

    typer.echo(f"zoft {__version__}")
    typer.echo(f"python {sys.version.split()[0]}")
    for package in ("torch", "transformers", "peft", "datasets", "numba"):
        try:
            typer.echo(f"{package} {installed(package)}")
        except PackageNotFoundError:
            typer.echo(f"{package} is not installed")


@recipes.command("ls", short_help="List the packaged recipes.")
def list_recipes() -> None:
    """Example: zoft recipes ls

    List the packaged recipes, each with what it does.
    """
    from zoft.recipe import packaged

    names = packaged.names()
    width = max(map(len, names), default=0)
    for name in names:
        typer.echo(f"{name:{width}}  {packaged.summary(name)}")


@recipes.command("show", short_help="Print a packaged recipe.")
def show_recipe(name: NameArgument) -> None:
    """Example: zoft recipes show quickstart

    Print a packaged recipe, comments included.
    """
    typer.echo(_packaged(name).read_text(encoding="utf-8"), nl=False)


@recipes.command("cp", short_help="Copy a packaged recipe, to change it.")
def copy_recipe(
    name: NameArgument,
    path: Annotated[
        Path | None,
        typer.Argument(metavar="PATH", help="File or folder.", show_default="NAME.yaml, here"),
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


def _packaged(name: str) -> Path:
    from zoft.recipe import packaged

    if path := packaged.path_of(name):
        return path
    raise RecipeError(
        f"no packaged recipe is called {name!r}; there are {', '.join(packaged.names())}"
    )


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code; what went wrong is one line on stderr."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    try:
        code = app(arguments, prog_name="zoft", standalone_mode=False)
    except typer.TyperException as error:
        return _usage(error, arguments)
    except ZoftError as error:
        for line in str(error).splitlines():
            _complain(line)
        return error.exit_code
    except (KeyboardInterrupt, typer.Abort):
        return _interrupted()
    except OSError as error:  # rights, a full or a broken disk: the file and the reason say it all
        _complain(f"{error.filename or 'the system'}: {error.strerror or error}")
        return EnvironmentProblem.exit_code
    except Exception as error:
        summary = next(iter(str(error).splitlines()), "")
        _complain(
            f"unexpected {type(error).__name__}: {summary} (the traceback is in {_log(error)})"
        )
        return 1
    # A command returns nothing; a number is the code of typer.Exit, and 130 its Ctrl-C.
    return _interrupted() if code == 130 else int(code or 0)


@contextmanager
def _quiet_imports() -> Iterator[None]:
    """peft and transformers import torchao and bitsandbytes wherever these are installed, and they log
    what of theirs this machine cannot use (kernels for other GPUs, a faster path zoft does not take)."""
    loggers = [logging.getLogger(name) for name in NOISY]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


def _complain(line: str) -> None:
    typer.echo(f"error: {line}", err=True)


def _interrupted() -> int:
    _complain("interrupted")
    return 130


def _usage(error: typer.TyperException, arguments: list[str]) -> int:
    message = error.format_message()
    if not arguments or arguments == ["recipes"]:  # not a mistake: the help itself
        typer.echo(message)
    elif override := _meant_as_override(arguments):
        _complain(f"overrides have no dashes: write {override}")
    else:
        _complain(f"{message.rstrip('.')}; zoft --help says more")
    return error.exit_code


def _meant_as_override(arguments: list[str]) -> str | None:
    """`train.lr=3` for `--train.lr 3` and for `--train.lr=3`."""
    for option, following in zip(arguments, [*arguments[1:], "VALUE"], strict=True):
        if match := re.fullmatch(r"--(\w+(?:\.\w+)+)(?:=(.*))?", option, re.DOTALL):
            key, value = match.groups()
            return f"{key}={following if value is None else value}"
    return None


def _log(error: Exception) -> Path:
    """Write the traceback to the run's log, where the error knows it, else to a temporary file."""
    text = "".join(traceback.format_exception(error))
    path: Path | None = getattr(error, "log_path", None)
    if path is not None:
        try:
            with Path(path).open("a", encoding="utf-8") as log:
                log.write(text)
            return Path(path)
        except OSError:
            pass  # a full disk may be what went wrong
    with tempfile.NamedTemporaryFile(
        "w", prefix="zoft-", suffix=".log", delete=False, encoding="utf-8"
    ) as file:
        file.write(text)
    return Path(file.name)
