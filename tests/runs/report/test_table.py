from __future__ import annotations

import fcntl
import io
import json
import os
import re
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console
from support.written import finished_run as a_run

from zoft.cli.main import main
from zoft.errors import EnvironmentProblem
from zoft.runs.record import best_first, read_run
from zoft.runs.report import table as tables


def named(folder: Path, name: str, **changes: object) -> Path:
    """A run of that name, with entries of run.json changed."""
    run = a_run(folder / f".{name}").rename(folder / name)
    manifest = json.loads((run / "run.json").read_text())
    (run / "run.json").write_text(json.dumps({**manifest, **changes}))
    return run


def test_what_a_record_says(tmp_path: Path) -> None:
    run = read_run(named(tmp_path, "one"))
    assert (run.status, run.step, run.steps, run.forward_passes) == ("finished", 40, 40, 80)
    assert run.zero_shot is not None
    assert run.last is not None
    assert (run.zero_shot["accuracy"], run.best, run.last["step"]) == (0.5, run.last, 40)
    assert run.seconds == 73.0


def test_equal_scores_are_told_apart_by_their_loss(tmp_path: Path) -> None:
    path = named(tmp_path, "one")
    with (path / "metrics.jsonl").open("a") as file:
        for step, loss in ((50, 0.2), (60, 0.1), (70, None)):
            event = {"event": "eval", "step": step, "accuracy": 0.9, "loss": loss, "rows": 20}
            file.write(json.dumps(event) + "\n")
    best = read_run(path).best
    assert best is not None
    assert best["step"] == 60


def test_evaluations_are_ranked_by_one_metric_then_loss_then_step() -> None:
    events: list[dict[str, Any]] = [
        {"step": 1, "accuracy": 0.5, "loss": 0.1},
        {"step": 2, "loss": 0.2},  # scored by another metric, before a resume
        {"step": 3, "accuracy": 0.9, "loss": None},  # not finite: no score either
        {"step": 4, "accuracy": None, "loss": 0.3},
        {"step": 5, "accuracy": 0.7, "loss": 0.4},
        {"step": 6, "accuracy": 0.7, "loss": 0.3},
        {"step": 7, "accuracy": 0.7, "loss": 0.3},
    ]
    assert [event["step"] for event in best_first(events, "accuracy")] == [6, 7, 5, 1]
    assert [event["step"] for event in best_first(events, "loss")] == [1, 2, 4, 6, 7, 5]
    assert best_first(events, "f1") == []


def test_a_run_that_says_running_is_killed_unless_its_journal_is_held(tmp_path: Path) -> None:
    path = named(tmp_path, "one", status="running")
    assert read_run(path).status == "killed"
    with (path / "journal.jsonl").open("ab") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        assert read_run(path).status == "running"


def test_runs_are_listed_newest_first_and_broken_ones_as_such(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for age, name in enumerate(["old", "new", "broken"]):
        for mark in named(tmp_path, name).glob("*.*"):
            os.utime(mark, (1e9 + age, 1e9 + age))
    (tmp_path / "broken" / "run.json").write_text("{ torn")
    (tmp_path / "no run").mkdir()
    assert main(["runs", "ls", str(tmp_path)]) == 0
    head, *lines = capsys.readouterr().out.splitlines()
    assert re.split("  +", head) == [
        *["run", "status", "step", "model", "method"],
        "best (zero-shot)",
        "time",
        "size",
    ]
    assert [line.split()[0] for line in lines] == ["broken", "new", "old"]
    assert "broken    40/40  run.json cannot be read" in lines[0]
    assert lines[1].startswith(
        "new     finished  40/40  m                        full    accuracy 0.700 (0.500)  1:13  "
    )
    assert all(line == line.rstrip() and line.isprintable() for line in (head, *lines))


@pytest.mark.parametrize("width", [80, 120])
def test_a_row_is_a_line_also_where_it_is_narrow(
    tmp_path: Path, width: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    named(tmp_path, "quickstart")
    screen = Console(file=io.StringIO(), width=width, force_terminal=True)
    monkeypatch.setattr(tables, "_console", lambda: screen)
    tables.list_runs(tmp_path)
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 2
    assert ("size" in lines[0]) == (width == 120)


def test_a_run_is_shown_and_its_report_drawn_again(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = named(tmp_path, "one", status="interrupted")
    assert main(["runs", "show", str(path)]) == 0
    out = capsys.readouterr().out
    assert (path / "report.html").is_file()
    for line in (
        "status         interrupted, step 40 of 40", "forward passes 80",
        "best           accuracy 0.700, loss 0.6000 (20 rows), step 40",
        "test           accuracy 0.710, loss 0.6000 (9 rows)", "wall time      1:13",
        f"go on with     zoft train {path}/resolved.yaml --resume {path}",
    ):  # fmt: skip
        assert f"{line}\n" in out


def test_runs_are_compared_by_what_differs(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    one, two = named(tmp_path, "one"), named(tmp_path, "two", peak_memory_bytes=2**30)
    resolved = two / "resolved.yaml"
    resolved.write_text(resolved.read_text().replace("seed: 0", "seed: 7"))
    assert main(["runs", "compare", str(one), str(two)]) == 0
    rows = {line.split("  ")[0]: line.split() for line in capsys.readouterr().out.splitlines()}
    assert rows["seed"] == ["seed", "0", "7"]
    assert "train.steps" not in rows
    assert rows["best"] == ["best", "accuracy", "0.700", "accuracy", "0.700"]
    assert rows["peak memory"] == ["peak", "memory", "3.00", "GiB", "1.00", "GiB"]


@pytest.mark.parametrize(
    ("arguments", "code", "answer"),
    [
        ("runs show nowhere", 4, "error: nowhere is not a run; zoft runs ls DIR lists"),
        ("runs ls nowhere", 4, "error: nowhere is not a folder"),
        ("runs compare nowhere", 2, "error: zoft runs compare takes at least two runs"),
        ("runs compare nowhere there", 4, "error: nowhere is not a run"),
    ],
)
def test_what_is_no_run_is_one_line(
    arguments: str, code: int, answer: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(arguments.split()) == code
    out, err = capsys.readouterr()
    assert (out, err.count("\n")) == ("", 1)
    assert err.startswith(answer)


def test_an_empty_folder_is_no_failure(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["runs", "ls", str(tmp_path)]) == 0
    assert capsys.readouterr().out == f"no runs in {tmp_path}\n"
    with pytest.raises(EnvironmentProblem):
        read_run(tmp_path)
