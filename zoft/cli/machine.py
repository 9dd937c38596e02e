"""Verbs about the machine and what is installed on it."""

from __future__ import annotations

import sys

import typer

from zoft import __version__
from zoft.cli.imports import quiet_imports


def doctor() -> None:
    """Example: zoft doctor

    Say what this machine has: torch, GPU and driver, kernels, extras, free memory and disk, caches, the
    Hub's login; then the versions, to paste into a report.
    """
    with quiet_imports():
        from zoft.planning.doctor import doctor as run_doctor

    run_doctor()


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
