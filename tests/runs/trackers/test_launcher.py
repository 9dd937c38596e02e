"""Whatever a tracker does, the run does not notice. The trackers' libraries are stand-ins here, so that
the process starts at once and can be made to fail."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from support import ROOT
from support.waiting import until
from support.written import take
from support.written import tracked_run as a_run

from zoft.errors import EnvironmentProblem
from zoft.runs.folder import RunFolder
from zoft.runs.metrics import Metrics
from zoft.runs.trackers import launcher
from zoft.runs.trackers.launcher import environment, require_installed, tracked
from zoft.runs.trackers.process import read_state
from zoft.system.signals import Stop

TRACKING = """
import json, os, time
from pathlib import Path

HERE = Path(__file__).parents[1]

class TrackioTracker:
    def __init__(self, *_, **__):
        self.file, self.writer = HERE / f"{{type(self).__name__}}.jsonl", self
    def start(self):
        pass
    def add_text(self, *_):
        pass
    def log(self, values, step):
        with self.file.open("a") as file:
            file.write(json.dumps([step, values]) + "\\n")
    def finish(self):
        pass

class TensorBoardTracker(TrackioTracker):
    def {where}(self, *arguments, **options):
        {action}
        super().{where}(*arguments, **options)
"""
HANG = "(HERE / 'hanging').touch(); time.sleep(600)"


@pytest.fixture(autouse=True)
def _without_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(launcher, "LOOK_SECONDS", 0.0)


def pretend(
    monkeypatch: pytest.MonkeyPatch, folder: Path, where: str = "start", action: str = "pass"
) -> None:
    """Stand-ins: trackio works, tensorboard does `action` at `where`: start, log or finish."""
    files = {
        "accelerate/__init__.py": "def PartialState(cpu): pass\n",
        "accelerate/tracking.py": TRACKING.format(where=where, action=action),
        "torch/__init__.py": "",
        "torch/utils/__init__.py": "",
        "torch/utils/tensorboard.py": "",
        "trackio.py": "",
    }
    for name, text in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)
    monkeypatch.setenv("PYTHONPATH", str(folder))


def sending(run: Path, name: str = "tensorboard") -> bool:
    return read_state(run, name).get("state") == "sending"


def sent(folder: Path, name: str = "TensorBoardTracker") -> list[int]:
    file = folder / f"{name}.jsonl"
    lines = file.read_text().splitlines() if file.exists() else []
    return [step for step, values in map(json.loads, lines) if "train/loss" in values]


def test_all_that_the_run_writes_arrives_also_after_signals(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pretend(monkeypatch, tmp_path)
    run, said = a_run(tmp_path), list[str]()
    with tracked(RunFolder(run), ["tensorboard"], said.append, Stop()) as look:
        until(lambda: sending(run))
        process = read_state(run, "tensorboard")["process"]
        for number in (signal.SIGINT, signal.SIGTERM):  # as a terminal or a scheduler sends to all
            os.kill(process, number)
        metrics = Metrics(run / "metrics.jsonl", look)
        for step in (5, 6):
            take(metrics, step)
    assert sent(tmp_path) == [1, 2, 3, 4, 5, 6]
    assert said == [f"tensorboard    tensorboard --logdir {run}/trackers"]
    assert os.getpgid(0) != process


def test_a_resumed_run_sends_what_is_new(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pretend(monkeypatch, tmp_path)
    run, metrics = a_run(tmp_path), Metrics(tmp_path / "mine" / "metrics.jsonl")
    for steps in ((), (5, 6)):
        for step in steps:
            take(metrics, step)
        with tracked(RunFolder(run), ["tensorboard", "trackio"], print, Stop()):
            pass
    assert sent(tmp_path) == sent(tmp_path, "TrackioTracker") == [1, 2, 3, 4, 5, 6]


def test_one_that_raises_costs_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pretend(monkeypatch, tmp_path, "log", "raise OSError('disk on fire')")
    said: list[str] = []
    run = a_run(tmp_path)
    with tracked(RunFolder(run), ["tensorboard", "trackio"], said.append, Stop()) as look:
        until(lambda: look() or said)
        look()
    during, end, other = said
    assert during == (
        "warning: tensorboard: OSError: disk on fire; the run goes on, metrics.jsonl has everything"
    )
    assert end == f"warning: tensorboard: OSError: disk on fire; {run}/metrics.jsonl has everything"
    assert other == "trackio        trackio show --project trials"
    assert sent(tmp_path, "TrackioTracker") == [1, 2, 3, 4]


@pytest.mark.parametrize("where", ["start", "log", "finish"])
def test_one_that_hangs_is_stopped_in_the_end_and_keeps_nothing_from_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, where: str
) -> None:
    monkeypatch.setattr(launcher, "FINISH_SECONDS", 1.0)
    pretend(monkeypatch, tmp_path, where, HANG)
    said: list[str] = []
    run = a_run(tmp_path)
    with tracked(RunFolder(run), ["tensorboard", "trackio"], said.append, Stop()) as look:
        until((tmp_path / "hanging").exists if where != "finish" else lambda: sending(run))
        until(lambda: sending(run, "trackio"))
        process = read_state(run, "trackio")["process"]
        take(Metrics(run / "metrics.jsonl", look), 5)
        until(lambda: 5 in sent(tmp_path, "TrackioTracker"))
        begun = time.monotonic()
    assert time.monotonic() - begun < 10
    assert said == [
        f"warning: tensorboard: no answer within 1 s, so it was stopped; {run}/metrics.jsonl has "
        "everything",
        "trackio        trackio show --project trials",
    ]
    assert sent(tmp_path, "TrackioTracker") == [1, 2, 3, 4, 5]
    with pytest.raises(ProcessLookupError):
        os.kill(process, 0)


def test_a_run_that_is_told_to_stop_does_not_wait_long(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(launcher, "STOPPED_SECONDS", 0.3)
    pretend(monkeypatch, tmp_path, "start", HANG)
    said: list[str] = []
    run = a_run(tmp_path)
    with tracked(RunFolder(run), ["tensorboard"], said.append, Stop(signal=signal.SIGTERM)):
        until((tmp_path / "hanging").exists)
        begun = time.monotonic()
    assert time.monotonic() - begun < 3
    [line] = said
    assert "not done 0.3 s after the run was stopped" in line


def test_a_killed_one_is_told_of(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pretend(monkeypatch, tmp_path)
    run, said = a_run(tmp_path), list[str]()
    with tracked(RunFolder(run), ["tensorboard"], said.append, Stop()) as look:
        until(lambda: sending(run))
        os.kill(read_state(run, "tensorboard")["process"], signal.SIGKILL)
        until(lambda: look() or said)
    assert "it ended with code -9 (see " in said[0]


def test_one_that_hangs_outlives_a_killed_run_by_some_seconds(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pretend(monkeypatch, tmp_path, "start", HANG)
    code = (
        "import sys; from pathlib import Path; from zoft.runs.trackers import process; "
        "process.ORPHAN_SECONDS = 0.1; process.main(Path(sys.argv[1]), ['tensorboard'])"
    )
    done = subprocess.run(
        [sys.executable, "-P", "-c", code, str(a_run(tmp_path))],
        stdin=subprocess.DEVNULL, env=environment(["tensorboard"]), timeout=30, check=False,
    )  # fmt: skip
    assert done.returncode == -signal.SIGALRM


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
    assert kept & set(environment(["wandb"])) == {"WANDB_API_KEY", "LANG"}
    assert kept & set(environment(["tensorboard"])) == {"LANG"}
    assert kept & set(environment(["trackio"])) == {"HF_TOKEN", "LANG"}
    both = environment(["wandb", "trackio"])
    assert kept & set(both) == {"HF_TOKEN", "WANDB_API_KEY", "LANG"}
    assert both["PYTHONPATH"].split(os.pathsep)[0] == str(ROOT)


def test_what_is_not_installed_is_said_before_anything_begins(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    require_installed(["wandb", "tensorboard", "trackio"])
    monkeypatch.setattr(launcher, "find_spec", lambda name: None if name == "trackio" else 1)
    with pytest.raises(EnvironmentProblem, match=r'trackio.*pip install "zoft\[trackio\]"'):
        require_installed(["wandb", "trackio"])


def test_wandb_keeps_its_name_in_run_json(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(launcher, "_Follower", lambda *_: 1 / 0)
    run = RunFolder(tmp_path)
    names = []
    for _ in range(2):
        with pytest.raises(ZeroDivisionError), tracked(run, ["wandb"], print, Stop()):
            pass
        names.append(run.manifest()["trackers"]["wandb"])
    assert names[0] == names[1]
    assert len(names[0]) == 8
