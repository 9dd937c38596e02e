"""The least time of a step by its bytes and by its products, on a card of known rates.

Assumed is an H200: 4.3 TB/s of a copy (read and written), 790 TFLOP/s in bfloat16 or float16, and 50
GB/s each way between its host and it (PCIe gen5, 16 lanes). Only weights count as bytes, only products
with them and attention as arithmetic: both are floors, not estimates. A sweep's arithmetic is the
instructions of its compiled kernel, of which 132 processors issue four of 32 lanes a clock of 1.98 GHz.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:  # the campaign itself imports no torch
    from gpu.shapes import Counts

CARD = "assumed: an H200 of 4.3 TB/s copied, 790 TFLOP/s, 50 GB/s each way to its host"
COPY, FLOPS, HOST = 4.3e12, 790e12, 50e9
INSTRUCTIONS = 132 * 4 * 32 * 1.98e9  # of one lane, a second
COMPILED = Path(__file__).parents[2] / "tests/engine/kernels/triton/ptx_table.json"

# How often a step reads or writes the weights that a pass multiplies with, and how often all of them. A
# dense probe reads a weight, writes its perturbed copy and reads that; an update reads and writes. A
# walk of MeZO's draws z and stores it, then reads both and writes the weight; there are four.
TRAFFIC = {
    "two plain passes": (2, 0),
    "zoft rank-1": (2, 2),
    "zoft rank-1, paired": (1, 2),
    "zoft rank-1, per example, paired": (1, 2),
    "zoft dense": (6, 2),
    "zoft dense, paired": (5, 2),
    "MeZO": (2, 16),
    "ZO2": (2, 16),
}


def by_bytes(step: str, counts: Counts, itemsize: int) -> float:
    """Seconds of a resident step."""
    in_passes, in_sweeps = TRAFFIC[step]
    return (in_passes * counts.multiplied + in_sweeps * counts.weights) * itemsize / COPY


def by_arithmetic(counts: Counts, rows: int, row: int, *, scored: int = 1) -> float:
    """Seconds of two passes over rows of `row` tokens, of which `scored` see the head."""
    blocks = 2 * counts.blocks * rows * row
    head = 2 * (counts.multiplied - counts.blocks) * rows * scored
    attention = 2 * counts.attended * rows * row * row  # causal: half of q k and of the mix
    return 2 * (blocks + head + attention) / FLOPS


def by_link(streamed_bytes: int, passes: int) -> float:
    """Seconds of a step that fetches these bytes for each pass, and writes them back meanwhile."""
    return streamed_bytes * max(passes, 1) / HOST


def of_instructions(kernel: str, turns: int) -> float:
    """Seconds for an element of a sweep that draws so many directions for it."""
    row = json.loads(COMPILED.read_text(encoding="utf-8"))[f"{kernel} | sm_90"]
    return float(row["once"] + turns * row["loop"]) / INSTRUCTIONS
