"""The campaign of scripts/gpu.sh: a part that goes wrong is named and takes nothing from the others;
all of it is rehearsed on the CPU."""

from __future__ import annotations

import importlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest
from support import ROOT

EMITS = "from pathlib import Path; from gpu.results import Results; Results(Path({out!r})).emit"


@pytest.fixture(scope="module")
def campaign() -> Iterator[ModuleType]:
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(ROOT / "benchmarks"))
        yield importlib.import_module("gpu.campaign")


@pytest.fixture(autouse=True)
def settled(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    """Parts are found in the test's folder; the signal is this process's again."""
    monkeypatch.syspath_prepend(str(tmp_path))
    before = signal.getsignal(signal.SIGTERM)
    yield
    signal.signal(signal.SIGTERM, before)


def test_what_goes_wrong_is_named_and_the_rest_is_there(
    campaign: ModuleType, tmp_path: Path
) -> None:
    emits = EMITS.format(out=str(tmp_path))
    kill = "import os, signal; os.kill(os.getpid(), signal.SIGKILL)"
    codes = {
        "first": f"{emits}('Step', seconds=1.25)",
        "crashing": f"{emits}('Step', seconds=2.5); raise ValueError('no luck')",
        "hanging": f"{emits}('Step', seconds=3.5); import time; time.sleep(600)",
        "killed": kill,
        "last": f"{emits}('Sweep', rate=4321.0)",
    }
    todo = []
    for name, code in codes.items():
        (tmp_path / f"part_{name}.py").write_text(code)
        todo.append(campaign.Part(name, f"part_{name}", (), 8 if name == "hanging" else 60))
    assert campaign.run(todo, tmp_path, "A card, a driver") == 1
    page = (tmp_path / "gpu.md").read_text()
    assert page.startswith("A card, a driver\n")
    assert "| first | well |" in page
    assert "| crashing | exit 1: " in page
    assert "ValueError: no luck" in page
    assert "| hanging | cut off after 8 s |" in page
    assert "| killed | killed by SIGKILL |" in page
    assert "| last | well |" in page
    assert all(figure in page for figure in ("1.25", "2.5", "3.5", "4,321"))


def test_when_the_minutes_are_over_the_rest_is_left_out(
    campaign: ModuleType, tmp_path: Path
) -> None:
    assert campaign.run([campaign.Part("late", "part_late")], tmp_path, "A card", 0.1) == 0
    assert "| late | left out: the 0.1 minutes are over |" in (tmp_path / "gpu.md").read_text()


CUT = """\
import sys
from pathlib import Path
from gpu.campaign import Part, run
if __name__ == "__main__":
    sys.exit(run([Part("first", "part_first")], Path({out!r}), "A card"))
"""


def test_a_cut_leaves_what_was_found(tmp_path: Path) -> None:
    """Also a cut that nobody hears of: the page is written while a part still runs."""
    emits, script = EMITS.format(out=str(tmp_path)), tmp_path / "cut.py"
    hangs = f"{emits}('Step', seconds=1.5); import time; time.sleep(600)"
    (tmp_path / "part_first.py").write_text(hangs)
    script.write_text(CUT.format(out=str(tmp_path)))
    found = os.pathsep.join(map(str, (ROOT, ROOT / "benchmarks", tmp_path)))
    process = subprocess.Popen(
        [sys.executable, str(script)],
        stdout=subprocess.DEVNULL,
        env={**os.environ, "PYTHONPATH": found},
    )
    page, end = tmp_path / "gpu.md", time.monotonic() + 60
    while not (page.exists() and "1.5" in page.read_text()) and time.monotonic() < end:
        time.sleep(0.05)
    assert "1.5" in page.read_text()
    process.terminate()
    assert process.wait(60) == 1
    assert "| first | stopped |" in page.read_text()


def test_it_is_rehearsed_on_the_cpu(tmp_path: Path) -> None:
    command = ["bash", str(ROOT / "scripts" / "gpu.sh"), "--rehearse", "--python", sys.executable]
    done = subprocess.run(
        [*command, "--out", str(tmp_path), "--commit", "abc123"],
        capture_output=True,
        text=True,
        check=False,
    )
    page, log = ((tmp_path / name).read_text() for name in ("gpu.md", "gpu.log"))
    assert done.returncode == 0, page + log[-3000:]
    title, _, tables = page.partition("\n")
    assert "abc123" in title
    assert "REHEARSED" in title
    for name in ("Parts", "Doctor", "Tests", "Training", "Step, llama-1b, bfloat16",
                 "Sweep, bfloat16", "Offload", "Backprop, llama-1b, bfloat16", "Files"):  # fmt: skip
        assert f"\n## {name}\n" in tables, name
    rows = [json.loads(line) for line in (tmp_path / "gpu.jsonl").read_text().splitlines()]
    assert all(row["ended"] == "well" for row in rows if row["table"] == "Parts")
    assert not [row for row in rows if "fails" in row]
    assert {
        row["loss falls"] and row["same bytes"] for row in rows if row["table"] == "Training"
    } == {True}
    measured = [row for row in rows if row["table"].startswith(("Step", "Offload"))]
    assert all(row["floor by bytes"] > 0 < row["floor by arithmetic"] for row in measured)
    swept = [row for row in rows if row["table"].startswith("Sweep") and row["sweep"] != "copy"]
    assert all(row["at most by bytes"] > 0 < row["at most by arithmetic"] for row in swept)
