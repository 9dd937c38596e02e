"""Verbs that make of a run what other programs take: merge, export."""

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
        from zoft.sharing.merge import merge as run_merge

    run_merge(target, out, dtype)


def export(
    target: Annotated[
        str,
        typer.Argument(metavar="TARGET", help="A run, a checkpoint, an adapter or a model."),
    ],
    out: Annotated[
        str | None,
        typer.Argument(metavar="OUT", help="The file.", show_default="TARGET-TYPE.gguf, here"),
    ] = None,
    to: Annotated[Literal["gguf"], typer.Option(help="The format.")] = "gguf",
    kind: Annotated[
        Literal["f32", "f16", "bf16", "q8_0"],
        typer.Option("--type", help="Type of the matrices in the file."),
    ] = "f32",
) -> None:
    """Example: zoft export runs/quickstart movies.gguf --to gguf --type q8_0

    Write a model as one file for llama.cpp, where that knows its family. The file is read back.
    """
    del to  # the only one there is
    with quiet_imports():
        from zoft.sharing.export import export as run_export

    run_export(target, out, kind)
