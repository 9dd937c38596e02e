"""Golden losses: the first steps of a tiny run, kept as text.

A change that is not meant to change results shows the same losses here. They are compared to TOLERANCE
because matrix products differ in their last bits between CPUs and thread counts; directions, rounding
and updates do not. To write them anew after a change that is meant:

    ZOFT_WRITE_GOLDEN=1 bash scripts/test.sh tests/training/test_golden.py
"""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
from support import small

from zoft.training.run import train

TOLERANCE = 2e-4  # absolute, on losses near 0.7
GOLDEN = Path(__file__).parent / "golden"
# One direction for the whole batch, one sign in a pass, rows in the order of the stream.
DENSE = [
    "optimizer.structure=dense", "optimizer.scope=batch", "optimizer.paired=false",
    "train.group_by_length=false",
]  # fmt: skip
CASES = {
    "full-scalar": ("full", DENSE),
    "full-window-gaussian": (
        "full",
        [
            *DENSE,
            "optimizer.moments=window",
            "optimizer.distribution=gaussian",
            "optimizer.directions=2",
        ],
    ),
    "full-mezo": ("full", [*DENSE, "optimizer.name=mezo", "optimizer.lr=1e-4"]),
    "lora-full": ("lora", DENSE),
    "full-rank1-example": ("full", []),  # the default
    "full-rank1-batch": ("full", ["optimizer.scope=batch"]),
    "full-rank1-mezo": (
        "full",
        ["optimizer.name=mezo", "optimizer.lr=1e-4", "optimizer.structure=rank1"],
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_losses_are_as_they_were(case: str, tmp_path: Path) -> None:
    method, changes = CASES[case]
    recipe = small.write(tmp_path, method)
    train(str(recipe), [*changes, "train.steps=8", "~eval", "~checkpoint"])
    lines = (tmp_path / "run/metrics.jsonl").read_text().splitlines()
    found = [
        [event["step"], *event["loss_plus"], *event["loss_minus"]]
        for event in map(json.loads, lines)
        if event["event"] == "train"
    ]
    file = GOLDEN / f"{case}.txt"
    if os.environ.get("ZOFT_WRITE_GOLDEN"):
        file.write_text("".join(" ".join(f"{x:.8g}" for x in row) + "\n" for row in found))
    expected = [[float(x) for x in line.split()] for line in file.read_text().splitlines()]
    assert len(found) == len(expected) == 8
    for ours, golden in zip(found, expected, strict=True):
        assert ours == pytest.approx(golden, abs=TOLERANCE)
