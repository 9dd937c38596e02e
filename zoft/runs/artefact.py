"""A run as a file to hand on: its journal, the initial adapter, and what must come out of a replay.

An artefact is a folder with `journal.jsonl` and, for an adapter, `start/`. Its lines are the run's; its
header has one entry more: "result", the step that it ends at and the sha256 of the weights there (and
a checksum of its own; the steps' continue from "chain", which stays).
docs/journal-format.md describes it for those who write another reader.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

from zoft.errors import EnvironmentProblem
from zoft.runs import complete
from zoft.runs.journal import Header, header_line, parse

JOURNAL, START = "journal.jsonl", "start"
HEADER = "the header"
_CHECKPOINT = re.compile(r"checkpoint-(\d+)")


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


def told_steps(journal: Path, header: Header) -> dict[str, int]:
    """How many steps the journal must hold at least, by who says so: its header (of an artefact), the
    checkpoints and run.json beside it.

    Without lines at its end a journal is still right in every line: nothing in it can tell.
    """
    from zoft.runs.record import (
        read_manifest,
    )  # loads the schema, which `journal show` does without

    told = {HEADER: header["result"]["step"]} if "result" in header else {}
    for folder in sorted(journal.parent.glob("checkpoint-*")):
        if (match := _CHECKPOINT.fullmatch(folder.name)) and complete.sizes_match(folder):
            told[folder.name] = int(match[1])
    if isinstance(step := read_manifest(journal.parent).get("step"), int):
        told["run.json"] = step
    return told


def require_whole(journal: Path, header: Header, steps: int, hint: str = "") -> None:
    """Raises EnvironmentProblem, with a hint, if a journal of so many steps must hold more."""
    ends = max(told_steps(journal, header).values(), default=0)
    if steps < ends:
        raise EnvironmentProblem(f"{journal} breaks off: it holds {steps} of {ends} steps{hint}")


def shared_journal(journal: Path, shared: Callable[[Header], Header] = lambda x: x) -> bytes:
    """The journal as an artefact has it: with the result in its header, without a torn last line.

    `shared` gives the header that others are told. Raises EnvironmentProblem.
    """
    content = journal.read_bytes()
    header, entries, size, _ = parse(journal, content)
    require_whole(journal, header, len(entries))
    _, files = expected(journal, header, len(entries), len(entries))
    if files:
        header = {**header, "result": {"step": len(entries), "files": files}}
    return header_line(shared(header)) + content[content.index(b"\n") + 1 : size]
