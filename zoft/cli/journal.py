"""`zoft replay` and `zoft journal show|verify|stats`: what a run's journal is good for."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from zoft.cli.arguments import place
from zoft.cli.imports import quiet_imports

Target = Annotated[
    Path,
    typer.Argument(metavar="RUN|FILE", parser=place, help="A run's folder, or a journal.jsonl."),
]


def replay(
    source: Annotated[
        str,
        typer.Argument(
            metavar="RUN|REPO_ID|FILE",
            help="A run's or an artefact's folder, a journal.jsonl, or a Hub repository with one.",
        ),
    ],
    at: Annotated[
        int | None,
        typer.Option(metavar="STEP", help="Stop behind this step.", show_default="the last"),
    ] = None,
    out: Annotated[
        str | None,
        typer.Option(metavar="DIR", help="A new folder.", show_default="RUN/replayed-STEP"),
    ] = None,
    base: Annotated[
        str | None,
        typer.Option(
            metavar="PATH",
            help="The base model, if it is not where the journal says.",
            show_default=False,
        ),
    ] = None,
) -> None:
    """Example: zoft replay runs/quickstart --at 300 --out step-300

    Rebuild a run's weights from its base model and its journal: no data, no forward pass. The base is
    checked before, the result's sha256 afterwards.
    """
    with quiet_imports():
        from zoft.sharing.replay import replay as run_replay

    run_replay(source, at=at, out=out, base=base)


def show(
    target: Target,
    step: Annotated[
        int | None,
        typer.Option(metavar="STEP", help="All numbers of one step.", show_default=False),
    ] = None,
) -> None:
    """Example: zoft journal show runs/quickstart --step 7

    What the run tuned and how, and its first and last steps.
    """
    from zoft.runs import journal_report

    journal_report.show(target, step, typer.echo)


def verify(target: Target) -> None:
    """Example: zoft journal verify runs/quickstart

    Look for lines that were changed, lost or are of another run, and for results that are not the
    journal's. (Only a replay recomputes them.)
    """
    from zoft.runs import journal_report

    journal_report.verify(target, typer.echo)


def stats(target: Target) -> None:
    """Example: zoft journal stats runs/quickstart

    Steps, bytes, slopes, losses and seconds in numbers.
    """
    from zoft.runs import journal_report

    journal_report.stats(target, typer.echo)
