"""The commands put together: the only place that prints errors and picks exit codes (zoft/errors.py).

Nothing heavy is imported before a command needs it, so that `zoft --help` answers at once.
"""

from __future__ import annotations

import errno
import os
import re
import sys
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

import typer

from zoft.cli import data, hub, journal, machine, recipes, runs, share, talk, tuning
from zoft.errors import EnvironmentProblem, ZoftError, disk_words, system_error
from zoft.system.host_memory import keep_few_kernels
from zoft.system.signals import LeftAtOnce, leaving_at_once
from zoft.system.surroundings import hush, leave_stdout, settle

app = typer.Typer(
    name="zoft",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    help="""Example: zoft train quickstart optimizer.lr=3e-4

    Fine-tune language models with forward passes only: no gradients, inference memory.
    """,
)
# In the order in which a user meets them, which is the help's.
app.command(short_help="Tune a model by a recipe.")(tuning.train)
app.command(short_help="Say what a recipe needs: memory, time, and what else would fit.")(
    tuning.plan
)
app.command(short_help="Check a recipe, its data and its model without running it.")(
    recipes.validate
)
app.command("range", short_help="Suggest a learning rate and a perturbation for a recipe.")(
    tuning.range_test
)
app.command("eval", short_help="Score a run, checkpoint, adapter or base model.")(tuning.evaluate)
app.command(short_help="Print what a model writes behind a prompt.")(talk.generate)
app.command(short_help="Talk to a model.")(talk.chat)
app.command(short_help="Make one model of an adapter and its base.")(share.merge)
app.command(short_help="Write a model as a GGUF file for llama.cpp.")(share.export)
app.command(short_help="Push a run's result to the Hugging Face Hub.")(hub.push)
app.command(short_help="Rebuild a run's weights from its journal.")(journal.replay)
app.command(short_help="Print the JSON schema of recipes, or explain a key.")(recipes.schema)
app.command(short_help="Say what this machine has, for a report.")(machine.doctor)
app.command(short_help="Print the versions of zoft and of what it stands on.")(machine.version)


def _group(name: str, summary: str, text: str) -> typer.Typer:
    """Verbs behind a word of their own; alone, it prints its help."""
    made = typer.Typer(no_args_is_help=True, rich_markup_mode=None, help=text, short_help=summary)
    app.add_typer(made, name=name)
    GROUPS.append(name)
    return made


GROUPS: list[str] = []
shipped = _group(
    "recipes",
    "List, show or copy the packaged recipes; fetch their demo.",
    """Example: zoft recipes cp quickstart mine.yaml

    The recipes that are shipped with zoft. `zoft train` takes their names as well as files.
    """,
)
shipped.command(short_help="List the packaged recipes.")(recipes.ls)
shipped.command(short_help="Print a packaged recipe.")(recipes.show)
shipped.command(short_help="Copy a packaged recipe, to change it.")(recipes.cp)
shipped.command(short_help="Fetch the model and the data of the quickstart recipes.")(recipes.demo)

rows = _group(
    "data",
    "Show what a recipe's rows become; list the packaged prompts.",
    """Example: zoft data preview quickstart

    The data of a recipe, as the model will read it.
    """,
)
rows.command(short_help="Show what the model will read, and what it learns of it.")(data.preview)
rows.command(short_help="List the prompts that have a name.")(data.templates)

watched = _group(
    "runs",
    "List, show or compare runs.",
    """Example: zoft runs ls

    What was run, how far it came and what came out, from the runs' folders alone.
    """,
)
watched.command(short_help="List the runs of a folder.")(runs.ls)
watched.command(short_help="Say what a run is and what came out.")(runs.show)
watched.command(short_help="Put runs side by side.")(runs.compare)

journals = _group(
    "journal",
    "Show, verify or sum up a run's journal.",
    """Example: zoft journal stats runs/quickstart

    The journal of a run: a line of numbers for each step, from which its weights follow.
    """,
)
journals.command(short_help="Print the header and the ends, or one step.")(journal.show)
journals.command(short_help="Look for gaps and damage.")(journal.verify)
journals.command(short_help="Print numbers over all steps.")(journal.stats)


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code; what went wrong is one line on stderr."""
    settle()
    if argv is None:  # a program of its own, not a part of one
        hush()
        keep_few_kernels()
    code = _explained(list(sys.argv[1:] if argv is None else argv))
    try:
        sys.stdout.flush()
    except OSError as error:  # a full disk, or a reader that left
        leave_stdout()
        if code == 0:
            _complain(f"stdout: {disk_words(error)}")
        return code or EnvironmentProblem.exit_code
    return code


def _explained(arguments: list[str]) -> int:
    """Run one command; an exception becomes a line and an exit code."""
    try:
        with leaving_at_once():
            code = app(arguments, prog_name="zoft", standalone_mode=False)
    except typer.TyperException as error:
        return _usage(error, arguments)
    except ZoftError as error:
        for line in str(error).splitlines():
            _complain(line)
        return error.exit_code
    except LeftAtOnce as stopped:
        _complain(str(stopped))
        return stopped.exit_code
    except (KeyboardInterrupt, typer.Abort):
        return _interrupted()
    except SystemExit:  # typer's own end when the reader of stdout left
        _complain(f"stdout: {os.strerror(errno.EPIPE)}")
        return EnvironmentProblem.exit_code
    except Exception as error:
        refused = error if isinstance(error, OSError) else system_error(error)
        if refused is not None:  # rights, a full or a broken disk: file and reason say it all
            _complain(f"{refused.filename or 'the system'}: {disk_words(refused)}")
            return EnvironmentProblem.exit_code
        if why := _missing_package(error) or _unusable_name(error, arguments):
            _complain(why)
            return EnvironmentProblem.exit_code
        summary = next(iter(str(error).splitlines()), "")
        _complain(f"unexpected {type(error).__name__}: {summary} ({_log(error)})")
        return 1  # a defect of zoft: one line here, the traceback in a file
    # A command returns nothing; a number is the code of typer.Exit, and 130 its Ctrl-C.
    return _interrupted() if code == 130 else int(code or 0)


def _missing_package(error: Exception) -> str | None:
    """The package that is not installed where a part of zoft first needs it."""
    package = isinstance(error, ModuleNotFoundError) and (error.name or "").partition(".")[0]
    return f"this needs {package}: pip install {package}" if package and package != "zoft" else None


def _unusable_name(error: Exception, arguments: list[str]) -> str | None:
    """What is wrong with a path that Python takes and others do not."""
    if isinstance(error, UnicodeEncodeError):  # bytes of a name that is not UTF-8
        found = re.search(r"[^\s'\"]*[\udc80-\udcff][^\s'\"]*", error.object)
        return found and f"{found[0]!a}: the name is not UTF-8; rename it"
    if isinstance(error, RuntimeError) and "determine home directory" in str(error):
        return "a path begins with `~` and a name, and there is no such user"
    odd = next((text for text in arguments if re.search("[\udc80-\udcff]", text)), None)
    return odd and f"{odd!a} is not UTF-8"


def _complain(line: str) -> None:
    with suppress(OSError):  # stderr may lie on the full disk that the line is about
        typer.echo(f"error: {line}", err=True)


def _interrupted() -> int:
    _complain("interrupted")
    return 130


def _usage(error: typer.TyperException, arguments: list[str]) -> int:
    message = error.format_message()
    if not arguments or (
        len(arguments) == 1 and arguments[0] in GROUPS
    ):  # not a mistake: the help itself
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


def _log(error: Exception) -> str:
    """Write the traceback to the run's log, where the error knows it, else to a temporary file, and
    say where it is."""
    import tempfile
    import traceback

    text = "".join(traceback.format_exception(error))
    path: Path | None = getattr(error, "log_path", None)
    if path is not None:
        with suppress(OSError):  # a full disk may be what went wrong
            with Path(path).open("a", encoding="utf-8", errors="replace") as log:
                log.write(text)
            return f"the traceback is in {path}"
    try:
        with tempfile.NamedTemporaryFile(
            "w", prefix="zoft-", suffix=".log", delete=False, encoding="utf-8", errors="replace"
        ) as file:
            file.write(text)
    except OSError:
        return "no place for the traceback"
    return f"the traceback is in {file.name}"
