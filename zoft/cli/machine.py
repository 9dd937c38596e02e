"""Verbs about the machine and what is installed on it."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from zoft import __version__
from zoft.cli.imports import quiet_imports
from zoft.errors import RecipeError


def doctor(
    model: Annotated[
        str | None,
        typer.Argument(
            help="A folder, a .gguf file or a Hub id (also ID@REVISION); left out: this machine."
        ),
    ] = None,
    trust_remote_code: Annotated[
        bool, typer.Option("--trust-remote-code", help="Run the code that the model brings.")
    ] = False,
    gpu: Annotated[
        bool, typer.Option("--gpu", help="Try the GPU: kernels, speed, streaming; exit 0 or 1.")
    ] = False,
    json: Annotated[
        Path | None, typer.Option("--json", help="With --gpu: a file for what was found.")
    ] = None,
) -> None:
    """Example: zoft doctor Qwen/Qwen3-30B-A3B

    Say what this machine has: torch, GPU and driver, kernels, extras, free memory and disk, caches, the
    Hub's login; then the versions, to paste into a report. With a MODEL: what works for it (full
    tuning, LoRA's modules, probes, streaming), from its config, without its weights. With --gpu: whether
    zoft may be trusted on this machine's GPU, in under a minute; exit 1 if not.
    """
    if (gpu and model is not None) or (json is not None and not gpu):
        raise RecipeError("doctor: --gpu takes no MODEL, and --json goes with --gpu")
    if gpu:
        with quiet_imports():
            from zoft.planning.doctor import gpu as of_gpu

        raise typer.Exit(0 if of_gpu.doctor(json) else 1)
    with quiet_imports():
        from zoft.planning.doctor import machine
        from zoft.planning.doctor import model as of_model

    if model is None:
        machine.doctor()
    else:
        of_model.doctor(model, trust_remote_code=trust_remote_code)


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
