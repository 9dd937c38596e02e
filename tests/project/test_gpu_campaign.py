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

GOOD = "from pathlib import Path; from gpu.results import Results; Results(Path({out!r})).emit"


@pytest.fixture(scope="module")
def campaign() -> Iterator[ModuleType]:
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(ROOT / "benchmarks"))
        yield importlib.import_module("gpu.campaign")


@pytest.fixture(autouse=True)
def settled(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Parts find the campaign's modules; the signal is this process's again."""
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(ROOT), str(ROOT / "benchmarks")]))
    before = signal.getsignal(signal.SIGTERM)
    yield
    signal.signal(signal.SIGTERM, before)


def part(campaign: ModuleType, name: str, code: str, seconds: float = 60.0) -> object:
    return campaign.Part(name, (sys.executable, "-c", code), seconds)


def test_what_goes_wrong_is_named_and_the_rest_is_there(
    campaign: ModuleType, tmp_path: Path
) -> None:
    good = GOOD.format(out=str(tmp_path))
    kill = "import os, signal; os.kill(os.getpid(), signal.SIGKILL)"
    code = campaign.run(
        [
            part(campaign, "first", f"{good}('Step', seconds=1.25)"),
            part(campaign, "crashing", f"{good}('Step', seconds=2.5); raise ValueError('no luck')"),
            part(
                campaign, "hanging", f"{good}('Step', seconds=3.5); import time; time.sleep(600)", 3
            ),
            part(campaign, "killed", kill),
            part(campaign, "last", f"{good}('Sweep', rate=4321.0)"),
        ],
        tmp_path,
        "A card, a driver",
    )
    assert code == 1
    page = (tmp_path / "gpu.md").read_text()
    assert page.startswith("A card, a driver\n")
    assert "| first | well |" in page
    assert "| crashing | exit 1: " in page
    assert "ValueError: no luck" in page
    assert "| hanging | cut off after 3 s |" in page
    assert "| killed | killed by SIGKILL |" in page
    assert "| last | well |" in page
    assert all(figure in page for figure in ("1.25", "2.5", "3.5", "4,321"))


def test_when_the_minutes_are_over_the_rest_is_left_out(
    campaign: ModuleType, tmp_path: Path
) -> None:
    good = GOOD.format(out=str(tmp_path))
    assert campaign.run([part(campaign, "late", f"{good}('Step')")], tmp_path, "A card", 0.1) == 0
    assert "| late | left out: the 0.1 minutes are over |" in (tmp_path / "gpu.md").read_text()


CUT = """\
import sys
from pathlib import Path
from gpu.campaign import Part, run
hangs = "{good}('Step', seconds=1.5); import time; time.sleep(600)"
sys.exit(run([Part("first", (sys.executable, "-c", hangs), 600)], Path({out!r}), "A card"))
"""


def test_a_cut_leaves_what_was_found(tmp_path: Path) -> None:
    """Also a cut that nobody hears of: the page is written while a part still runs."""
    code = CUT.format(good=GOOD.format(out=str(tmp_path)), out=str(tmp_path))
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.DEVNULL)
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
