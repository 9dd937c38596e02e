"""Verbs that make of a run what other programs take: merge."""

from __future__ import annotations

from typing import Annotated, Literal

import typer

from zoft.cli.imports import quiet_imports


def merge(
    target: Annotated[
        str, typer.Argument(metavar="TARGET", help="A run, a checkpoint or an adapter's folder.")
    ],
    out: Annotated[str, typer.Argument(metavar="OUT", help="The model's folder: a new one.")],
    dtype: Annotated[
        Literal["float32", "bfloat16", "float16"],
        typer.Option(help="Type of the weights in the files."),
    ] = "float32",
) -> None:
    """Example: zoft merge runs/quickstart-lora movie-model --dtype bfloat16

    Add an adapter to its base model. The files are read back and must give the logits of both.
    """
    with quiet_imports():
        from zoft.merge import merge as run_merge

    run_merge(target, out, dtype)
