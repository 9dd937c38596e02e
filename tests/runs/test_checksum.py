"""Lines that were changed, moved, lost or brought from another journal are found, and named."""

from __future__ import annotations

import json
import math
import random
import zlib
from collections.abc import Callable
from pathlib import Path

import pytest
from support.written import change_header, unprotect

from zoft.cli.main import main
from zoft.engine.optimizers.measurement import Measurement
from zoft.errors import EnvironmentProblem
from zoft.runs import artefact, journal
from zoft.runs.checksum import UNPROTECTED
from zoft.runs.journal import Entry, Journal

HEADER = {
    "layout": 1, "zoft": "0.1.0", "seed": 7, "dtype": "float32",
    "base": {"name": "someone/base", "revision": "main", "sha256": "ab" * 32},
    "optimizer": {"name": "r-adazo"},
    "parameters": [["a.weight", zlib.crc32(b"a.weight"), [4, 4], True]],
}  # fmt: skip
STEPS = 6


def entry(step: int, seed: int = 7) -> Entry:
    chance = random.Random(f"{seed} {step}")
    loss, c = round(chance.random(), 7), round(chance.gauss(0, 40), 6)
    return Entry(Measurement(step, (loss,), (loss / 2,), (c, -c)), 1e-4)


def written(path: Path, seed: int = 7, lines: int = 7) -> list[bytes]:
    """A journal of six steps, of which so many slopes and losses follow from `seed`; its lines."""
    with Journal.create(path, {**HEADER, "seed": seed}, math.inf) as log:
        for step in range(1, STEPS + 1):
            log.append(entry(step, lines))
    return path.read_bytes().splitlines(keepends=True)


def renumbered(line: bytes, step: int) -> bytes:
    """The line as that of another step."""
    values = json.loads(line)
    return line.replace(b'"step":%d,' % values["step"], b'"step":%d,' % step)


Lines = list[bytes]
DAMAGE: dict[str, tuple[Callable[[Lines, Lines], Lines], int]] = {
    "a digit in the last": (lambda x, _: [*x[:6], x[6].replace(b"0.0001", b"0.0002")], 7),
    "a digit in the header": (lambda x, _: [x[0].replace(b"\"seed\":7", b"\"seed\":8"), *x[1:]], 1),
    "a blank": (lambda x, _: [*x[:2], x[2].replace(b",", b", ", 1), *x[3:]], 3),
    "a digit of a checksum": (lambda x, _: [*x[:4], x[4][:-4] + b"x" + x[4][-3:], *x[5:]], 5),
    "a checksum less": (lambda x, _: [*x[:4], x[4][:-22] + b"}\n", *x[5:]], 5),
    "the header's checksum less": (lambda x, _: [x[0][:-22] + b"}\n", *x[1:]], 1),
    "a line removed": (lambda x, _: [*x[:3], *x[4:]], 4),
    "a line removed, the others numbered again": (
        lambda x, _: [*x[:3], *(renumbered(line, 3 + i) for i, line in enumerate(x[4:]))], 4,
    ),
    "the first step removed and numbered again": (
        lambda x, _: [x[0], *(renumbered(line, 1 + i) for i, line in enumerate(x[2:]))], 2,
    ),
    "a line doubled": (lambda x, _: [*x[:4], x[3], *x[4:]], 5),
    "a line doubled and numbered": (lambda x, _: [*x, renumbered(x[6], 7)], 8),
    "two lines swapped": (lambda x, _: [*x[:2], x[3], x[2], *x[4:]], 3),
    "their numbers stayed": (
        lambda x, _: [*x[:2], renumbered(x[3], 2), renumbered(x[2], 3), *x[4:]], 3,
    ),
    "a line of another run": (lambda x, y: [*x[:3], y[3], *x[4:]], 4),
    "its last line": (lambda x, y: [*x[:6], y[6]], 7),
    "its lines from there on": (lambda x, y: [*x[:3], *y[3:]], 4),
    "its header": (lambda x, y: [y[0], *x[1:]], 2),
    "two lines in one": (lambda x, _: [*x[:3], x[3][:-1], *x[4:]], 4),
    "an empty line": (lambda x, _: [*x[:3], b"\n", *x[3:]], 4),
    "an empty last line": (lambda x, _: [*x, b"\n"], 8),
    "line ends of another system": (lambda x, _: [line[:-1] + b"\r\n" for line in x], 1),
    "the last newline is a letter": (lambda x, _: [*x[:6], x[6][:-1] + b"x"], 7),
    "the last newline is a zero": (lambda x, _: [*x[:6], x[6][:-1] + b"\0"], 7),
    "a letter at the end": (lambda x, _: [*x, b"x"], 8),
    "the header of an early journal": (
        lambda x, _: [b'{"format":"zoft-journal","version":1}\n', *x[1:]], 2,
    ),
}  # fmt: skip


@pytest.mark.parametrize("kind", DAMAGE)
def test_damage_is_found_and_named(
    tmp_path: Path, kind: str, capsys: pytest.CaptureFixture[str]
) -> None:
    change, line = DAMAGE[kind]
    path = tmp_path / "journal.jsonl"
    own, other = written(path), written(tmp_path / "other", seed=8)
    damaged = b"".join(change(own, other))
    assert damaged != b"".join(own)
    path.write_bytes(damaged)
    with pytest.raises(EnvironmentProblem, match=rf"journal\.jsonl:{line} is damaged: ") as read:
        journal.read(path)
    with pytest.raises(EnvironmentProblem) as reopened:
        Journal.reopen(path, math.inf)
    assert str(reopened.value) == str(read.value)
    assert path.read_bytes() == damaged
    assert main(["journal", "verify", str(path)]) == 4
    assert capsys.readouterr().err == f"error: {read.value}\n"


def test_lines_of_a_run_that_differs_in_its_losses_alone_are_found(tmp_path: Path) -> None:
    path = tmp_path / "journal.jsonl"
    own, other = written(path), written(tmp_path / "other", lines=8)
    assert own[0] == other[0]
    for line in range(2, STEPS + 1):  # the first step alone would be right in the other's place
        path.write_bytes(b"".join([*own[:line], other[line], *own[line + 1 :]]))
        with pytest.raises(EnvironmentProblem, match=rf"journal\.jsonl:{line + 1} is damaged"):
            journal.read(path)


TORN: dict[str, Callable[[bytes], bytes]] = {
    "its newline": lambda x: x[:-1],
    "half of it": lambda x: x[: len(x) // 2],
    "all but a brace": lambda _: b"{",
    "a number's beginning": lambda x: x[:8],
    "zeros": lambda _: bytes(700),
    "zeros behind its beginning": lambda x: x[:30] + bytes(40),
    "zeros in place of its beginning": lambda x: bytes(60) + x[60:],
}


@pytest.mark.parametrize("kind", TORN)
def test_a_torn_last_line_is_no_damage(
    tmp_path: Path, kind: str, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "journal.jsonl"
    lines = written(path)
    rest = TORN[kind](lines[-1])
    path.write_bytes(b"".join(lines[:-1]) + rest)
    assert main(["journal", "verify", str(path)]) == 0
    assert f"torn       {len(rest)} bytes of a last line" in capsys.readouterr().out
    log, _, found = Journal.reopen(path, math.inf)
    assert len(found) == STEPS - 1
    with log:
        log.append(entry(STEPS))
    assert path.read_bytes() == b"".join(lines)


def test_an_early_journal_is_read_goes_on_as_it_is_and_is_said_to_be_unprotected(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "journal.jsonl"
    written(path)
    unprotect(path)
    whole = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join(whole[:-1]) + whole[-1][:-30])
    log, _, _ = Journal.reopen(path, math.inf)
    with log:
        log.append(entry(STEPS))
    assert path.read_bytes() == b"".join(whole)
    assert artefact.shared_journal(path) == b"".join(whole)
    assert main(["journal", "verify", str(path)]) == 0
    out = capsys.readouterr().out
    assert f"checksums  {UNPROTECTED}\n" in out
    assert all(len(line) <= 80 for line in out.splitlines())


def test_an_artefact_keeps_the_steps_and_is_protected_itself(tmp_path: Path) -> None:
    path = tmp_path / "journal.jsonl"
    lines = written(path)
    shared = artefact.shared_journal(path, lambda header: {**header, "base": {"name": "you/base"}})
    assert shared.splitlines(keepends=True)[1:] == lines[1:]
    path.write_bytes(shared)
    header, entries = journal.read(path)
    assert (header["base"], len(entries)) == ({"name": "you/base"}, STEPS)
    path.write_bytes(shared.replace(b"you/base", b"you/bass"))
    with pytest.raises(EnvironmentProblem, match=r"journal\.jsonl:1 is damaged"):
        journal.read(path)


def test_missing_last_lines_are_found_where_something_tells_of_them(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "journal.jsonl"
    lines = written(path)
    path.write_bytes(b"".join(lines[:-1]))
    assert main(["journal", "verify", str(path)]) == 0  # a file alone cannot tell
    (tmp_path / "checkpoint-000006").mkdir()
    (tmp_path / "checkpoint-000006" / "COMPLETE").write_text("{}")
    (tmp_path / "run.json").write_text('{"status": "finished", "step": 6}')
    capsys.readouterr()
    assert main(["journal", "verify", str(path)]) == 4
    err = capsys.readouterr().err
    assert "it holds 5 steps, and checkpoint-000006 says 6\n" in err
    assert "it holds 5 steps, and run.json says 6\n" in err
    with pytest.raises(EnvironmentProblem, match="breaks off: it holds 5 of 6 steps"):
        artefact.shared_journal(path)
    path.write_bytes(b"".join(lines))
    assert main(["journal", "verify", str(path)]) == 0
    change_header(path, result={"step": 4, "files": {}})
    assert main(["journal", "verify", str(path)]) == 4
    assert "it holds 6 steps, and the header says 4\n" in capsys.readouterr().err
