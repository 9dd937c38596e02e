"""Journals of real runs with one character changed: `verify`, resume and replay refuse them."""

from __future__ import annotations

import json
import random
import shutil
import string
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from support import small
from support.failures import killed_after
from support.written import unprotect

from zoft.cli.main import main
from zoft.errors import EnvironmentProblem
from zoft.runs.checksum import UNPROTECTED
from zoft.runs.journal import parse, read
from zoft.training.run import train

VARIANTS = {
    "rank-1 per example": ("full", []),
    "many directions, paired": (
        "full", ["optimizer.scope=batch", "optimizer.directions=8", "optimizer.paired=true"],
    ),
    "lora, dense": ("lora", ["tune.r=2", "optimizer.structure=dense", "optimizer.scope=batch"]),
}  # fmt: skip
STEPS, EDITS = 8, 1000
SHORT = [f"train.steps={STEPS}", "checkpoint.every=3", "~data.eval", "logging.every=50"]
CHARACTERS = string.printable + "\0é" + "0123456789" * 5

Finished = Callable[..., Path]


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Finished:
    """The folder of a variant's finished run; its recipe is ../recipe.yaml."""
    return small.finished_runs(tmp_path_factory, VARIANTS, SHORT)


def edits(text: str, chance: random.Random) -> Iterator[tuple[int, str]]:
    """Texts with one character replaced, inserted or deleted, and where."""
    while True:
        at, character = chance.randrange(len(text) + 1), chance.choice(CHARACTERS)
        length = chance.choice((0, 1, 1))
        edited = text[:at] + chance.choice(("", character)) + text[at + length :]
        if edited != text:
            yield at, edited


@pytest.mark.parametrize("variant", VARIANTS)
def test_every_edit_of_a_character_is_found_and_its_line_named(
    finished: Finished, variant: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(finished(variant), tmp_path / "run")
    path = tmp_path / "run" / "journal.jsonl"
    text = path.read_text()
    many = edits(text, random.Random(variant))
    for at, edited in (next(many) for _ in range(EDITS)):
        line = 1 + text.count("\n", 0, at)
        try:
            found = parse(path, edited.encode())
        except EnvironmentProblem as error:
            named = int(str(error).removeprefix(f"{path}:").split()[0])
            assert named == line or (named == line + 1 and edited[at] == "\n"), (at, edited[at])
            continue
        # Only what may as well be torn is no damage: the rest of the run knows how many steps it had.
        assert at >= len(text) - 1
        assert found.size < len(edited)
        path.write_text(edited)
        capsys.readouterr()
        code = main(["journal", "verify", str(path)])
        out, err = capsys.readouterr()
        assert "torn       " in out
        assert code == 0 or f"it holds {STEPS - 1} steps, and run.json says {STEPS}" in err


def test_verify_resume_and_replay_say_the_same(
    finished: Finished, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run, recipe = tmp_path / "run", str(finished().parent / "recipe.yaml")
    path = run / "journal.jsonl"
    for line, status in ((1, "running"), (5, "running"), (5, "finished"), (9, "running")):
        shutil.copytree(finished(), run)
        lines = path.read_bytes().splitlines(keepends=True)
        digit = next(i for i in reversed(range(30, 60)) if lines[line - 1][i : i + 1].isdigit())
        other = b"%d" % ((int(lines[line - 1][digit : digit + 1]) + 1) % 10)
        lines[line - 1] = lines[line - 1][:digit] + other + lines[line - 1][digit + 1 :]
        path.write_bytes(b"".join(lines))
        record = json.loads((run / "run.json").read_text())
        (run / "run.json").write_text(json.dumps({**record, "status": status}))
        before = {file: file.read_bytes() for file in run.rglob("*") if file.is_file()}
        said = set()
        for command in (
            ["journal", "verify", str(run)],
            ["train", recipe, *SHORT, "--output-dir", str(run), "--resume", "auto"],
            ["replay", str(run), "--out", str(tmp_path / "out")],
        ):
            capsys.readouterr()
            assert main(command) == 4
            said.add(capsys.readouterr().err)
        [error] = said
        assert f"{path}:{line} is damaged: " in error
        assert error.count("\n") == 1
        assert {file: file.read_bytes() for file in run.rglob("*") if file.is_file()} == before
        shutil.rmtree(run)


@pytest.mark.parametrize("status", ["running", "finished"])
def test_steps_whose_lines_are_missing_are_taken_again(
    finished: Finished, tmp_path: Path, status: str, capsys: pytest.CaptureFixture[str]
) -> None:
    run, recipe = tmp_path / "run", str(finished().parent / "recipe.yaml")
    shutil.copytree(finished(), run)
    path = run / "journal.jsonl"
    whole = path.read_bytes()
    path.write_bytes(b"".join(whole.splitlines(keepends=True)[:-1]))
    record = json.loads((run / "run.json").read_text())
    (run / "run.json").write_text(json.dumps({**record, "status": status}))
    assert main(["replay", str(run), "--out", str(tmp_path / "out")]) == 4
    assert f"it holds {STEPS - 1} of {STEPS} steps; --at {STEPS - 1}" in capsys.readouterr().err
    train(recipe, SHORT, output_dir=str(run), resume="auto")
    note = f"by run.json this run was at step {STEPS}, its journal ends at {STEPS - 1}"
    assert note in capsys.readouterr().out
    assert path.read_bytes() == whole
    weights = Path("final", "model.safetensors")
    assert (run / weights).read_bytes() == (finished() / weights).read_bytes()


def test_a_run_that_began_without_checksums_goes_on_without(
    finished: Finished, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run, recipe = tmp_path / "run", str(finished().parent / "recipe.yaml")
    with killed_after(5):
        train(recipe, SHORT, output_dir=str(run))
    unprotect(run / "journal.jsonl")
    train(recipe, SHORT, output_dir=str(run), resume="auto")
    assert f"checksums: {UNPROTECTED}\n" in capsys.readouterr().out
    assert b"crc32" not in (run / "journal.jsonl").read_bytes()
    assert read(run / "journal.jsonl")[1] == read(finished() / "journal.jsonl")[1]
    assert main(["replay", str(run), "--out", str(tmp_path / "out")]) == 0
    assert f"checksums: {UNPROTECTED}\n" in capsys.readouterr().out
