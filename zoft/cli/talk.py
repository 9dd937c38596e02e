"""Verbs that let a model write: generate, chat."""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from zoft.cli.imports import quiet_imports
from zoft.errors import DataError, RecipeError

Target = Annotated[
    str,
    typer.Argument(metavar="TARGET", help="A run, a checkpoint, an adapter or a base model."),
]
MaxNewTokens = Annotated[
    int, typer.Option(metavar="N", min=1, help="Longest completion, in tokens.")
]
Temperature = Annotated[
    float,
    typer.Option(metavar="T", min=0.0, help="0: the likeliest token; above: drawn, more freely."),
]
Seed = Annotated[
    int, typer.Option(metavar="S", min=0, max=2**32 - 1, help="What is drawn follows from it.")
]


def generate(
    target: Target,
    prompt: Annotated[
        list[str] | None,
        typer.Option(
            metavar="TEXT",
            help="May be given several times. Without it: the lines of stdin.",
            show_default=False,
        ),
    ] = None,
    max_new_tokens: MaxNewTokens = 100,
    temperature: Temperature = 0.0,
    seed: Seed = 0,
    raw: Annotated[
        bool,
        typer.Option("--raw", help="No chat template around the prompts of a run on messages."),
    ] = False,
) -> None:
    """Example: zoft generate runs/quickstart --prompt "A film of rare beauty. It was"

    Print what a model writes behind a prompt; behind several, each with its prompt.
    """
    prompts = list(prompt or _lines_of_stdin())
    with quiet_imports():
        from zoft.inference.generate import generate as run_generate
        from zoft.inference.generation import Decoding

    decoding = Decoding(max_new_tokens, temperature=temperature, seed=seed)
    written = run_generate(target, prompts, decoding, raw=raw)
    if len(prompts) == 1:
        [completion] = written
        typer.echo(completion)
        return
    for number, (text, completion) in enumerate(zip(prompts, written, strict=True)):
        typer.echo(f"{'' if number == 0 else chr(10)}> {text}\n{completion}")


def chat(
    target: Target,
    max_new_tokens: MaxNewTokens = 512,
    temperature: Temperature = 0.0,
    seed: Seed = 0,
) -> None:
    """Example: zoft chat runs/chat

    Talk to a model that has a chat template. /reset forgets, /exit leaves, Ctrl-C stops an answer.
    """
    with quiet_imports():
        from zoft.inference.chat import chat as run_chat
        from zoft.inference.generation import Decoding

    run_chat(target, Decoding(max_new_tokens, temperature=temperature, seed=seed))


def _lines_of_stdin() -> list[str]:
    """Lines that are not empty. Raises RecipeError where nobody has written any."""
    if sys.stdin.isatty():
        raise RecipeError("nothing to continue: give --prompt TEXT, or pipe lines in")
    try:
        lines = [line for line in sys.stdin.read().splitlines() if line.strip()]
    except UnicodeDecodeError as error:
        raise DataError(f"stdin is not text in UTF-8 ({error.reason})") from error
    if not lines:
        raise RecipeError("nothing to continue: stdin has no line")
    return lines
