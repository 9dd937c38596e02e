"""Verbs about the machine and what is installed on it."""

from __future__ import annotations

import sys

import typer

from zoft import __version__


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
