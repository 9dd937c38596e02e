"""A run as a file to hand on: its journal, the initial adapter, and what must come out of a replay.

An artefact is a folder with `journal.jsonl` and, for an adapter, `start/`. Its lines are the run's; its
header has one entry more: "result", the step that it ends at and the sha256 of the weights there.
docs/journal-format.md describes it for those who write another reader.
"""

from __future__ import annotations

from pathlib import Path

from zoft.errors import EnvironmentProblem
from zoft.runs import complete
from zoft.runs.journal import Header, as_line, parse

JOURNAL, START = "journal.jsonl", "start"


def journal_of(target: Path) -> Path:
    """The journal of a run's or an artefact's folder, or the file itself. Raises EnvironmentProblem."""
    journal = target / JOURNAL if target.is_dir() else target
    if not journal.is_file():
        raise EnvironmentProblem(
            f"{target} holds no {JOURNAL}" if target.is_dir() else f"there is no {target}"
        )
    return journal


def expected(journal: Path, header: Header, steps: int, step: int) -> tuple[str, dict[str, str]]:
    """Who says what the weights at `step` of all `steps` are, and the sha256 of each of their files.

    The folders of a run (final/, a checkpoint), else the artefact's header; nobody: no files.
    """
    run = journal.parent
    folders = [run / f"checkpoint-{step:06d}"]
    if step == steps:
        folders.insert(0, run / "final")
    for folder in folders:
        if files := complete.weight_files(folder):
            return folder.name, files
    result = header.get("result")
    if result and result["step"] == step:
        return "the journal's header", dict(result["files"])
    return "", {}


def shared_journal(journal: Path) -> bytes:
    """The journal as an artefact has it: with the result in its header, without a torn last line.

    Raises EnvironmentProblem.
    """
    content = journal.read_bytes()
    header, entries, good = parse(journal, content)
    _, files = expected(journal, header, len(entries), len(entries))
    if files:
        header = {**header, "result": {"step": len(entries), "files": files}}
    return as_line(header) + content[content.index(b"\n") + 1 : good]
