"""`zoft journal show|verify|stats` on journals of a few lines."""

from __future__ import annotations

import math
import subprocess
import sys
import zlib
from pathlib import Path
from typing import Any

import pytest
from support.written import change_header

import zoft
from zoft.cli.main import main
from zoft.engine.optimizers.measurement import Measurement
from zoft.runs import complete as manifest
from zoft.runs.journal import Entry, Journal

HEADER = {
    "layout": 1, "zoft": "0.1.0", "seed": 7, "dtype": "float32",
    "base": {"name": "someone/base", "revision": "main", "sha256": "ab" * 32},
    "tune": {"method": "full"},
    "optimizer": {"name": "r-adazo", "moments": "scalar", "structure": "rank1"},
    "parameters": [["a.weight", zlib.crc32(b"a.weight"), [4, 4], True],
                   ["a.bias", zlib.crc32(b"a.bias"), [4], False]],
}  # fmt: skip


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """Nine steps of two slopes, the fifth not finite; final/ and run.json beside them."""
    write(tmp_path)
    final = tmp_path / "final"
    final.mkdir()
    (final / "model.safetensors").write_bytes(b"weights")
    manifest.write(final)
    (tmp_path / "run.json").write_text('{"seconds": 18.0}')
    return tmp_path


def write(folder: Path, **changes: object) -> None:
    with Journal.create(folder / "journal.jsonl", {**HEADER, **changes}, math.inf) as journal:
        for step in range(1, 10):
            grads = (float(step), math.nan if step == 5 else -0.5)
            journal.append(Entry(Measurement(step, (0.5,), (0.25,), grads), 1e-3 / step))


def answer(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    assert main(["journal", *arguments]) == 0
    return capsys.readouterr().out


def test_show_gives_the_header_and_the_ends(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    lines = answer(capsys, "show", str(run)).splitlines()
    assert lines[:4] == [
        "base       someone/base at main, sha256 abababababab",
        "tuned      20 weights in 2 tensors, float32, full",
        "optimizer  r-adazo, scalar, rank1",
        "written by zoft 0.1.0, seed 7",
    ]
    assert lines[4] == "step 1      lr 0.001     loss 0.3750   |c| 0.791 over 2"
    assert [line.split()[1] for line in lines[4:] if line != "..."] == list("123789")
    assert all(len(line) <= 80 for line in lines)


def test_show_gives_one_step(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = answer(capsys, "show", str(run / "journal.jsonl"), "--step", "5")
    assert "projected_grad 5.0 nan\n" in out
    assert main(["journal", "show", str(run), "--step", "10"]) == 2
    assert "holds steps 1 to 9" in capsys.readouterr().err


def test_stats(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = answer(capsys, "stats", str(run))
    assert "steps      9, 1 of them not finite: skipped\n" in out
    assert "|c|        5 % 0.5, 50 % 0.5, 95 % 9, largest 9\n" in out
    assert "loss       0.3750 over the first 1 steps" in out
    assert "seconds    18.0 in training, 2.000 a step\n" in out


def test_verify_says_what_it_found(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with (run / "journal.jsonl").open("ab") as file:
        file.write(b'{"step": 1')
    out = answer(capsys, "verify", str(run))
    assert "version 1, 9 steps without a gap\n" in out
    assert "checksums  right in every line\n" in out
    assert "torn       10 bytes of a last line that was not finished: left out\n" in out
    assert "header     complete: 2 tensors, layout 1\n" in out
    assert "result     model.safetensors, by final\nsha256     " in out
    assert all(len(line) <= 80 for line in out.splitlines())


def test_a_changed_result_is_found(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (run / "final" / "model.safetensors").write_bytes(b"Weights")
    assert main(["journal", "verify", str(run)]) == 4
    assert "model.safetensors is not as it was written\n" in capsys.readouterr().err


WRONG: dict[str, tuple[dict[str, Any], str]] = {
    "a number twice": (
        {"parameters": [["a", 1, [1], True], ["b", 1, [1], True]]},
        "two parameters have one name or one number",
    ),
    "another number": (
        {"parameters": [["a", 1, [1], True]]},
        f"a has number 1, by its name it is {zlib.crc32(b'a')}",
    ),
    "no list": ({"parameters": [7]}, "are not [name, number, shape, decays]"),
    "a newer layout": ({"layout": 3}, "layout 3 of directions is not known here"),
    "more steps": ({"result": {"step": 12, "files": {}}}, "it holds 9 steps, and the header says 12"),
    "another result": (
        {"result": {"step": 9, "files": {"model.safetensors": "00"}}},
        "holds other weights than the journal's header says",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", WRONG)
def test_what_is_wrong_is_said(run: Path, case: str, capsys: pytest.CaptureFixture[str]) -> None:
    changes, message = WRONG[case]
    write(run, **changes)
    assert main(["journal", "verify", str(run)]) == 4
    assert message in capsys.readouterr().err


def test_no_framework_is_loaded() -> None:
    script = (
        "import sys, zoft.runs.journal_report;"
        "sys.exit(' '.join({'torch', 'transformers', 'numpy', 'numba'} & {*sys.modules}) or 0)"
    )
    root = Path(zoft.__file__).parents[1]
    subprocess.run([sys.executable, "-c", script], cwd=root, check=True)


def test_what_is_missing_is_said(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    change_header(run / "journal.jsonl", seed=None)
    assert main(["journal", "verify", str(run)]) == 4
    assert "the header lacks seed\n" in capsys.readouterr().err
    assert main(["journal", "stats", str(run / "gone")]) == 4
