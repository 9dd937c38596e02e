"""Runs as they lie on the disk, written without training."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

from support.recipes import chosen
from zoft.engine.optimizers.measurement import Measurement
from zoft.recipe.load import dump_recipe
from zoft.runs.journal import Entry, Journal, as_line, header_line
from zoft.runs.metrics import Metrics
from zoft.runs.trackers.process import place


def finished_run(folder: Path, steps: int = 40, **recipe: Any) -> Path:
    """A finished run of many kinds of events; its name and its label words are hostile."""
    run = folder / "a<b>&'run' $x 跑"
    run.mkdir(parents=True)
    data = {"labels": {"0": "<script>alert(1)</script>", "1": "good"}, "format": "classification"}
    settings = {"train": {"steps": steps}, "data": {**data, "template": "{text}"}, **recipe}
    (run / "resolved.yaml").write_text(dump_recipe(chosen(**settings)))
    metrics = Metrics(run / "metrics.jsonl")
    journal = Journal.create(run / "journal.jsonl", {}, math.inf)
    for step in range(steps + 1):
        if step:
            c = None if step == 7 else [(-1) ** step * step / 4, 2.0]
            metrics.write(
                "train", step, loss=None if step == 7 else 1.2 - step / 60, loss_plus=[1.0],
                loss_minus=[1.1], projected_grad=c or [None, None], lr=2e-4 / step, skipped=0,
                seconds=0.5, tokens=100, padding=0.1,
            )  # fmt: skip
            slopes = tuple(c or [math.nan, math.nan])
            journal.append(Entry(Measurement(step, (1.0,), (1.1,), slopes), 2e-4 / step))
        if step % 10 == 0:
            accuracy = 0.5 + step / 200
            metrics.write(
                "eval", step, accuracy=accuracy, loss=1 - step / 100, rows=20, seconds=1.0
            )
    metrics.write("final", steps, set="test", accuracy=0.71, loss=0.6, rows=9, seconds=1.0)
    journal.close()
    manifest = {
        "status": "finished", "step": steps, "seconds": 73.0, "peak_memory_bytes": 3 * 2**30,
        "planned_memory_bytes": 2**31, "versions": {"zoft": "0.1.0"}, "device": "cpu",
        "noise": {"projected_grad": 30.0, "noise": 2.0}, "command": ["zoft", "train", "<x>"],
    }  # fmt: skip
    (run / "run.json").write_text(json.dumps(manifest))
    return run


def tracked_run(folder: Path, steps: int = 4) -> Path:
    run = folder / "mine"
    run.mkdir(parents=True)
    place(run).mkdir()
    (run / "resolved.yaml").write_text(dump_recipe(chosen(logging={"project": "trials"})))
    (run / "run.json").write_text(json.dumps({"trackers": {"wandb": "abcd1234"}}))
    metrics = Metrics(run / "metrics.jsonl")
    metrics.write("eval", 0, accuracy=0.5, loss=0.75, rows=20, seconds=0.25)
    for step in range(1, steps + 1):
        take(metrics, step)
    return run


def take(metrics: Metrics, step: int) -> None:
    metrics.write("train", step, loss=1 / step, projected_grad=[3.0, -4.0], lr=1e-4, skipped=0)


def change_header(journal: Path, **changes: Any) -> None:
    """Give a journal another header with the right checksum; None takes an entry out."""
    first, _, steps = journal.read_bytes().partition(b"\n")
    header = {**json.loads(first), "crc32": None, **changes}
    line = header_line({key: value for key, value in header.items() if value is not None})
    journal.write_bytes(line + steps)


def unprotect(journal: Path) -> None:
    """Make a journal one that was written before there were checksums."""
    lines = [json.loads(line) for line in journal.read_text().splitlines()]
    for line in lines:
        del line["crc32"]
    del lines[0]["chain"]
    journal.write_bytes(b"".join(map(as_line, lines)))
