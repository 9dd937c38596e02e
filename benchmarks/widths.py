"""How the cost grows: a step over its plain passes by width, number of directions, and batch.

    python benchmarks/widths.py [--repeats 5] [--append]

LLaMA-like models of 4 layers and random weights, rows of 48 tokens, `choice`. One thing changes at a
time; the others stay at width 512, one direction, 16 rows. Inference is two plain passes per direction,
taken right beside the step. Where the cost is linear, the last column of ratios stays level.
"""

from __future__ import annotations

import gc
import time
from collections.abc import Iterator
from dataclasses import replace

import torch
from machine import Log, arguments, ratios, report, spread
from peers import inference
from subject import DENSE, RANK1, Step, journal, random_batch, toy

from zoft.engine.objectives.objective import objective_for
from zoft.system.host_memory import keep_freed_memory

WIDTHS, DIRECTIONS, BATCHES = (256, 512, 1024, 2048), (1, 2, 4, 8, 16), (1, 4, 16, 64)
LAYERS, VOCABULARY, TOKENS = 4, 8192, 48
PROBES = (replace(DENSE, paired=True), replace(RANK1, paired=True))
WARM = 1


def main() -> None:
    """Measure what is missing, print a table."""
    parser = arguments(__doc__, repeats=5)
    parser.add_argument("--dtypes", nargs="+", default=["float32", "bfloat16"])
    parser.add_argument("--widths", type=int, nargs="+", default=list(WIDTHS))
    a = parser.parse_args()
    keep_freed_memory()  # as zoft does; it serves every contestant
    log = Log("widths")
    for dtype in a.dtypes:
        for width, directions, batch in _grid(a.widths):
            point = {"dtype": dtype, "width": width, "directions": directions, "batch": batch}
            missing = a.repeats - len(log.find(**point))
            if missing > 0:
                _measure(log, missing, **point)
                gc.collect()
    lines = [
        "| compute | width | directions | batch | passes | "
        + " | ".join(f"{p.name}: step | step / passes" for p in PROBES)
        + " |",
        "|---" * (5 + 2 * len(PROBES)) + "|",
    ]
    for dtype in a.dtypes:
        for width, directions, batch in _grid(a.widths):
            rows = log.find(dtype=dtype, width=width, directions=directions, batch=batch)
            cells = [f"{spread([x['passes'] for x in rows]).split('**')[1]} s"]
            for probes in PROBES:
                cells.append(f"{spread([x[probes.name] for x in rows]).split('**')[1]} s")
                cells.append(spread(ratios(rows, probes.name, "passes"), 2))
            lines.append(f"| {dtype} | {width} | {directions} | {batch} | {' | '.join(cells)} |")
    report(f"Step over inference by size, {a.repeats} repeats", lines, to_file=a.append)


def _grid(widths: list[int]) -> Iterator[tuple[int, int, int]]:
    """(width, directions, batch): one of them leaves its place at a time."""
    yield from ((width, 1, 16) for width in widths)
    yield from ((512, directions, 16) for directions in DIRECTIONS if directions != 1)
    yield from ((512, 1, batch) for batch in BATCHES if batch != 16)


def _measure(log: Log, repeats: int, dtype: str, width: int, directions: int, batch: int) -> None:
    model = toy(width, LAYERS, VOCABULARY, torch.float32)
    plain = toy(width, LAYERS, VOCABULARY, getattr(torch, dtype))
    objective = objective_for("choice")
    with journal() as lines:
        steps = {
            p.name: Step(model, dtype, replace(p, directions=directions), lines) for p in PROBES
        }
        for i in range(-WARM, repeats):
            rows = random_batch(batch, TOKENS, VOCABULARY, seed=i % 2**32)
            seconds = {}
            order = ["passes", *steps]
            for name in order[i % len(order) :] + order[: i % len(order)]:
                begun = time.perf_counter()
                if name == "passes":
                    for _ in range(2 * directions):
                        inference(plain, rows)
                else:
                    steps[name](objective, rows)
                seconds[name] = round(time.perf_counter() - begun, 5)
            if i >= 0:
                log.add(dtype=dtype, width=width, directions=directions, batch=batch, **seconds)


if __name__ == "__main__":
    main()
