"""Each tracker's own files, read back, hold what metrics.jsonl holds."""

from __future__ import annotations

import json
import socket
import sqlite3
import sys
import threading
import warnings
from collections import defaultdict
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from support.waiting import until
from support.written import take
from support.written import tracked_run as a_run

from zoft.runs.metrics import Metrics, scalars
from zoft.runs.trackers.process import place, read_state, start_threads

Found = dict[str, dict[int, float]]  # name -> step -> value


def expected(run: Path) -> Found:
    found: Found = defaultdict(dict)
    for event in Metrics(run / "metrics.jsonl").read():
        for name, value in scalars(event).items():
            found[name][event["step"]] = value
    return found


def track(run: Path, *names: str) -> None:
    """In this process; the run has ended already, so they send what is there and finish."""
    ended = threading.Event()
    ended.set()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the trackers' own
        for thread in start_threads(run, names, ended):
            thread.join()
    assert {read_state(run, name)["state"] for name in names} == {"finished"}


def track_twice(run: Path, name: str) -> None:
    """As an interrupted run and its resumed part: two steps were taken back and made again."""
    track(run, name)
    metrics = Metrics(run / "metrics.jsonl")
    metrics.rewind(2)
    for step in (3, 4, 5):
        take(metrics, step)
    metrics.write("eval", 5, accuracy=0.75, loss=0.5, rows=20, seconds=0.25)
    track(run, name)


def test_tensorboard_reads_back_what_the_run_wrote(tmp_path: Path) -> None:
    run = a_run(tmp_path)
    track_twice(run, "tensorboard")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

        events = EventAccumulator(str(place(run) / "tensorboard"))
        events.Reload()
        read = {
            name: [(point.step, point.value) for point in events.Scalars(name)]
            for name in events.Tags()["scalars"]
        }
    count = sum(map(len, read.values()))
    assert {name: dict(points) for name, points in read.items()} == {
        name: pytest.approx(points, rel=1e-6) for name, points in expected(run).items()
    }
    assert count == sum(map(len, expected(run).values()))  # nothing twice


def test_trackio_has_it_in_its_database(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import trackio.sqlite_storage as storage

    for module in [m for name, m in sys.modules.items() if name.startswith("trackio")]:
        if hasattr(module, "TRACKIO_DIR"):
            monkeypatch.setattr(module, "TRACKIO_DIR", tmp_path / "trackio")
    (tmp_path / "trackio").mkdir()
    run = a_run(tmp_path)
    track_twice(run, "trackio")
    found: Found = defaultdict(dict)
    count = 0
    with closing(sqlite3.connect(storage.SQLiteStorage.get_project_db_path("trials"))) as database:
        for name, step, text in database.execute("select run_name, step, metrics from metrics"):
            assert name == "mine"
            for key, value in json.loads(text).items():
                found[key][step] = value
                count += 1
    assert found == expected(run)
    assert count == sum(map(len, found.values()))


def test_wandb_without_a_login_keeps_it_offline(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("WANDB_API_KEY", "WANDB_MODE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("NETRC", str(tmp_path / "none"))
    monkeypatch.setenv("WANDB_CONFIG_DIR", str(tmp_path))
    run = a_run(tmp_path)
    track_twice(run, "wandb")
    files = sorted((place(run) / "wandb").glob("offline-run-*/run-abcd1234.wandb"))
    values = expected(run)

    def points() -> list[tuple[str, int, float]]:
        rows = [row for file in files for row in wandb_history(file)]
        return [(name, step, value) for step, row in rows for name, value in row.items()]

    until(lambda: len(points()) >= sum(map(len, values.values())))  # wandb's own process writes it
    assert len(files) == 2
    assert sorted(points()) == sorted(  # nothing is lost, and nothing there twice
        (name, step, value) for name, steps in values.items() for step, value in steps.items()
    )
    assert read_state(run, "wandb")["note"].startswith("not logged in, so offline: wandb sync /")


def wandb_history(path: Path) -> list[tuple[int, dict[str, Any]]]:
    """The history of a .wandb file: records in LevelDB's log format, blocks of 32 KiB."""
    from wandb.proto import wandb_internal_pb2

    content, at, record, rows = path.read_bytes(), 7, b"", []
    while at + 7 <= len(content):
        if (left := 32768 - at % 32768) < 7:
            at += left
            continue
        size, kind = int.from_bytes(content[at + 4 : at + 6], "little"), content[at + 6]
        record += content[at + 7 : at + 7 + size]
        at += 7 + size
        if kind not in (1, 4):  # whole, or the last part
            continue
        message = wandb_internal_pb2.Record.FromString(record)  # type: ignore[attr-defined]
        record = b""
        if message.HasField("history"):
            values = {
                item.key or "/".join(item.nested_key): json.loads(item.value_json)
                for item in message.history.item
            }
            step = values.pop("_step", message.history.step.num)
            rows.append((step, {k: v for k, v in values.items() if not k.startswith("_")}))
    return rows


def test_a_server_that_nobody_listens_at_is_noticed_at_once(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from zoft.runs.trackers.process import _answers

    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        assert _answers(f"http://127.0.0.1:{port}")
    assert not _answers(f"http://127.0.0.1:{port}")
    monkeypatch.setattr(socket, "create_connection", lambda *_, **__: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        _answers("https://api.wandb.ai")
