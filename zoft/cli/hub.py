"""Verbs about the Hugging Face Hub: push."""

from __future__ import annotations

from typing import Annotated, Literal

import typer

from zoft.cli.imports import quiet_imports


def push(
    run: Annotated[str, typer.Argument(metavar="RUN", help="A run, or one of its checkpoints.")],
    repo_id: Annotated[
        str | None,
        typer.Argument(
            metavar="REPO_ID",
            help="USER/NAME, or NAME in your own account; else hub.repo_id of the run's recipe.",
            show_default=False,
        ),
    ] = None,
    overrides: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="hub.KEY=VALUE",
            help="hub.base_model=USER/BASE says what a local base is called on the Hub.",
            show_default=False,
        ),
    ] = None,
    public: Annotated[
        bool, typer.Option("--public", help="A new repository is public; else it is private.")
    ] = False,
    revision: Annotated[
        str | None, typer.Option(metavar="BRANCH", help="Made if it is not there. Default: main.")
    ] = None,
    what: Annotated[
        Literal["adapter", "model", "journal", "all"] | None,
        typer.Option(
            help="The weights that the run tuned (default), its journal, from which `zoft replay` "
            "makes them again, or both.",
        ),
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="List the files and their sizes; ask no server.")
    ] = False,
) -> None:
    """Example: zoft push runs/quickstart you/quickstart

    Push a run's result to the Hugging Face Hub: weights, tokenizer, model card, recipe, metrics.
    """
    with quiet_imports():
        from zoft.sharing.hub.push import push as run_push

    changes = list(overrides or [])
    if repo_id and "=" in repo_id:  # REPO_ID was left out
        changes.insert(0, repo_id)
        repo_id = None
    run_push(run, repo_id, changes, public=public, revision=revision, what=what, dry_run=dry_run)
