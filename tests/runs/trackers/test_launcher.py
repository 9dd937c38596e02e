"""Whatever a tracker does, the run does not notice. `accelerate` is a stand-in here, so that a process
starts at once and can be made to fail."""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from support.written import take
from support.written import tracked_run as a_run

from zoft.errors import EnvironmentProblem
from zoft.runs.folder import RunFolder
from zoft.runs.metrics import Metrics
from zoft.runs.trackers import launcher as trackers
from zoft.runs.trackers.launcher import environment, require_installed, tracked
from zoft.runs.trackers.state import read_state
from zoft.system.signals import Stop

STAND_IN = """
import json, os, time
from pathlib import Path

class TensorBoardTracker:
    def __init__(self, name, folder):
        self.file, self.writer = Path(folder, "sent.jsonl"), self
    def start(self):
        {start}
    def add_text(self, *_):
        pass
    def log(self, values, step):
        {log}
        with self.file.open("a") as file:
            file.write(json.dumps([step, values]) + "\\n")
    def finish(self):
        {finish}
"""


def pretend(
    monkeypatch: pytest.MonkeyPatch,
    folder: Path,
    *,
    start: str = "",
    log: str = "",
    finish: str = "",
) -> None:
    package = folder / "accelerate"
    package.mkdir()
    (package / "__init__.py").write_text("def PartialState(cpu): pass\n")
    text = STAND_IN.format(start=start or "pass", log=log or "pass", finish=finish or "pass")
    (package / "tracking.py").write_text(text)
    monkeypatch.setenv("PYTHONPATH", str(folder))


def until(condition: Callable[[], object], seconds: float = 30.0) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.02)


def sent(run: Path) -> list[int]:
    lines = (run / "trackers" / "sent.jsonl").read_text().splitlines()
    return [step for step, values in map(json.loads, lines) if "train/loss" in values]


def test_all_that_the_run_writes_arrives_also_after_signals(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pretend(monkeypatch, tmp_path)
    run, said = a_run(tmp_path), list[str]()
    with tracked(RunFolder(run), ["tensorboard"], said.append, Stop()) as look:
        until(lambda: read_state(run, "tensorboard").get("state") == "logging")
        process = read_state(run, "tensorboard")["process"]
        for number in (signal.SIGINT, signal.SIGTERM):  # as a terminal or a scheduler sends to all
            os.kill(process, number)
        metrics = Metrics(run / "metrics.jsonl", look)
        for step in (5, 6):
            take(metrics, step)
    assert sent(run) == [1, 2, 3, 4, 5, 6]
    assert said == [f"tensorboard    tensorboard --logdir {run}/trackers"]
    assert os.getpgid(0) != process


def test_one_that_raises_costs_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pretend(monkeypatch, tmp_path, log="raise OSError('disk on fire')")
    run, said = a_run(tmp_path), list[str]()
    with tracked(RunFolder(run), ["tensorboard"], said.append, Stop()) as look:
        until(lambda: look() or said)
        time.sleep(1.1)
        look()
    during, end = said
    assert during == (
        "warning: tensorboard: OSError: disk on fire; the run goes on, metrics.jsonl has everything"
    )
    assert end == f"warning: tensorboard: OSError: disk on fire; {run}/metrics.jsonl has everything"


@pytest.mark.parametrize("where", ["start", "finish"])
def test_one_that_hangs_is_stopped_in_the_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, where: str
) -> None:
    monkeypatch.setattr(trackers, "SILENT", 0.5)
    pretend(monkeypatch, tmp_path, **{where: "time.sleep(600)"})
    run, said = a_run(tmp_path), list[str]()
    begun = time.monotonic()
    with tracked(RunFolder(run), ["tensorboard"], said.append, Stop()):
        until(lambda: read_state(run, "tensorboard").get("state") in ("connecting", "logging"))
        process = read_state(run, "tensorboard")["process"]
    assert time.monotonic() - begun < 20
    [line] = said
    assert line.startswith("warning: tensorboard: no answer within ")
    with pytest.raises(ProcessLookupError):
        os.kill(process, 0)


def test_a_run_that_is_told_to_stop_does_not_wait_long(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(trackers, "STOPPED", 0.3)
    pretend(monkeypatch, tmp_path, start="time.sleep(600)")
    run, said = a_run(tmp_path), list[str]()
    with tracked(RunFolder(run), ["tensorboard"], said.append, Stop(signal=signal.SIGTERM)):
        until(lambda: read_state(run, "tensorboard").get("state") == "connecting")
        begun = time.monotonic()
    assert time.monotonic() - begun < 3
    assert len(said) == 1


def test_a_killed_one_is_told_of(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pretend(monkeypatch, tmp_path)
    run, said = a_run(tmp_path), list[str]()
    with tracked(RunFolder(run), ["tensorboard"], said.append, Stop()) as look:
        until(lambda: read_state(run, "tensorboard").get("state") == "logging")
        os.kill(read_state(run, "tensorboard")["process"], signal.SIGKILL)
        until(lambda: look() or said)
    assert "it ended with code -9 (see " in said[0]


def test_a_tracker_gets_no_secret_of_others(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in (
        "HF_TOKEN",
        "WANDB_API_KEY",
        "AWS_SECRET_ACCESS_KEY",
        "RANK",
        "WORLD_SIZE",
        "LANG",
    ):
        monkeypatch.setenv(name, "x")
    kept = {"HF_TOKEN", "WANDB_API_KEY", "AWS_SECRET_ACCESS_KEY", "RANK", "WORLD_SIZE", "LANG"}
    assert kept & set(environment("wandb")) == {"WANDB_API_KEY", "LANG"}
    assert kept & set(environment("tensorboard")) == {"LANG"}
    assert kept & set(environment("trackio")) == {"HF_TOKEN", "LANG"}


def test_what_is_not_installed_is_said_before_anything_begins(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    require_installed(["wandb", "tensorboard", "trackio"])
    monkeypatch.setattr(trackers, "find_spec", lambda name: None if name == "trackio" else 1)
    with pytest.raises(EnvironmentProblem, match=r'trackio.*pip install "zoft\[trackio\]"'):
        require_installed(["wandb", "trackio"])


def test_wandb_keeps_its_name_in_run_json(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trackers._Child, "start", lambda *_: 1 / 0)
    run = RunFolder(tmp_path)
    names = []
    for _ in range(2):
        with pytest.raises(ZeroDivisionError), tracked(run, ["wandb"], print, Stop()):
            pass
        names.append(run.manifest()["trackers"]["wandb"])
    assert names[0] == names[1]
    assert len(names[0]) == 8
