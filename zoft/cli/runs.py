"""`zoft runs ls|show|compare`: what was run, and what came out."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from zoft.cli.arguments import place

RunArgument = Annotated[
    Path, typer.Argument(metavar="RUN", parser=place, help="The folder of a run.")
]


def ls(
    folder: Annotated[
        Path, typer.Argument(metavar="DIR", parser=place, help="The folder that the runs are in.")
    ] = Path("runs"),
) -> None:
    """Example: zoft runs ls

    List the runs of a folder, the newest first, with their best score beside the zero-shot one.
    """
    from zoft.runs.report.table import list_runs

    list_runs(folder)


def show(run: RunArgument) -> None:
    """Example: zoft runs show runs/quickstart

    Say what a run is, what came out and where it lies. Draws report.html if it is missing.
    """
    from zoft.runs.report.table import show_run

    show_run(run)


def compare(
    runs: Annotated[
        list[Path],
        typer.Argument(metavar="RUN RUN [RUN ...]", parser=place, help="Folders of runs."),
    ],
) -> None:
    """Example: zoft runs compare runs/quickstart runs/slow

    Print the settings in which runs differ, and their scores, time and memory side by side.
    """
    from zoft.runs.report.table import compare_runs

    compare_runs(runs)
