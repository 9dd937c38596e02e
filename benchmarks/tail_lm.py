"""What exact gradients of the last blocks buy on `lm`: held-out loss, memory and seconds.

    python benchmarks/tail_lm.py [--steps 100] [--only none norm blocks:4] [--append]

The rows are real text that every machine has: what Python's own documentation says of each function and
class of the standard library, asked for by its name. Every rate of a contestant runs with the first
seed; the rate with the lowest held-out loss is its row of the table. A run is a folder below --runs:
finished ones are not repeated, stopped ones go on. Seconds are of the steps alone, at their median.
"""

from __future__ import annotations

import argparse
import importlib
import inspect
import json
import random
import re
import statistics
import subprocess
import sys
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from machine import report

from zoft.runs.metrics import Metrics
from zoft.runs.record import read_manifest

HELD_OUT = 300  # rows
SIDE_EFFECTS = {"antigravity", "this", "idlelib", "turtledemo", "turtle", "tkinter", "test"}
BODY = (5e-5, 1e-4, 2e-4)  # rates of the probes alone
TAIL = (3e-5, 1e-4, 3e-4)  # of exact gradients
GRID = {"none": BODY, **dict.fromkeys(("norm", *(f"blocks:{n}" for n in (1, 2, 4, 8, 30))), TAIL)}
BEHIND_A_TAIL = 3e-5  # the probes' rate
RECIPE = """
model: {{name: {model}}}
objective: {{name: lm}}
data:
  train: {{path: {folder}/train.jsonl}}
  eval: {{path: {folder}/validation.jsonl}}
  max_length: 256
train: {{batch_size: 16, steps: {steps}}}
eval: {{batch_size: 32, every: {every}, metric: loss}}
checkpoint: {{keep_last: 1, keep_best: 0}}
"""


@dataclass(frozen=True)
class Run:
    """One run of the grid."""

    tail: str
    lr: float
    folder: Path

    @property
    def changes(self) -> list[str]:
        """Its overrides of the recipe."""
        if self.tail == "none":
            return [f"optimizer.lr={self.lr}"]
        return [
            f"tune.tail={self.tail}", f"tune.tail_lr={self.lr}", f"optimizer.lr={BEHIND_A_TAIL}"
        ]  # fmt: skip

    def losses(self) -> dict[int, float]:
        """The held-out loss by the number of steps."""
        events = Metrics(self.folder / "metrics.jsonl").read()
        return {e["step"]: e["loss"] for e in events if e["event"] == "eval"}

    @property
    def seconds(self) -> float:
        """A step's, at the median."""
        events = Metrics(self.folder / "metrics.jsonl").read()
        return float(statistics.median(e["seconds"] for e in events if e["event"] == "train"))


def main() -> None:
    """Run what is missing, then print the table."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--model", default=".demo/SmolLM2-135M-Instruct.Q4_1.gguf")
    parser.add_argument("--runs", type=Path, default=Path("runs/tail-lm"))
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--every", type=int, default=25)
    parser.add_argument("--only", nargs="+", default=list(GRID), choices=GRID)
    parser.add_argument("--rates", type=float, nargs="+", help="instead of the grid's")
    parser.add_argument("--append", action="store_true", help="append the table to RESULTS.md")
    a = parser.parse_args()
    a.runs.mkdir(parents=True, exist_ok=True)
    write_rows(a.runs)
    recipe = a.runs / "recipe.yaml"
    folder = a.runs.resolve()
    text = RECIPE.format(model=a.model, folder=folder, steps=a.steps, every=a.every)
    recipe.write_text(text, encoding="utf-8")
    best = []
    for tail in a.only:
        name = tail.replace(":", "")
        grid = [
            Run(tail, lr, a.runs / f"{name}-lr{lr:g}-{a.steps}") for lr in a.rates or GRID[tail]
        ]
        for run in grid:
            train(run, recipe)
        best.append(min(grid, key=lambda run: min(run.losses().values())))
    report(f"`lm`, {a.steps} steps of 16 rows", table(best), to_file=a.append)


def write_rows(folder: Path) -> None:
    """Write train.jsonl and validation.jsonl, each row a question and its answer, in a fixed order."""
    rows = sorted({answer: question for question, answer in documented()}.items())
    random.Random(0).shuffle(rows)
    for name, part in (("validation", rows[:HELD_OUT]), ("train", rows[HELD_OUT:])):
        lines = (json.dumps({"prompt": q, "completion": f" {a}"}) for a, q in part)
        (folder / f"{name}.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")


def documented() -> Iterator[tuple[str, str]]:
    """What the first paragraph of its documentation says of each public name of the standard library
    that this Python can import."""
    warnings.simplefilter("ignore", DeprecationWarning)
    for module in sorted(sys.stdlib_module_names - SIDE_EFFECTS):
        if module.startswith("_"):
            continue
        try:
            found = importlib.import_module(module)
        except Exception:  # modules of other systems, or that want a display
            continue
        for name, thing in members(found, module):
            text = inspect.cleandoc(getattr(thing, "__doc__", None) or "")
            answer = " ".join(text.partition("\n\n")[0].split())
            if 20 <= len(answer) <= 300 and not re.match(r"[\w.]+\(", answer):  # no signature
                yield f"What is `{name}` in Python?", answer


def members(module: object, name: str) -> Iterator[tuple[str, object]]:
    """Its own public functions and classes, and the methods of these."""
    for key, thing in sorted(vars(module).items()):
        own = (getattr(thing, "__module__", None) or name).partition(".")[0] == name
        if key.startswith("_") or not callable(thing) or not own:
            continue
        yield f"{name}.{key}", thing
        if inspect.isclass(thing):
            for method, value in sorted(vars(thing).items()):
                if not method.startswith("_") and callable(value):
                    yield f"{name}.{key}.{method}", value


def train(run: Run, recipe: Path) -> None:
    """Take the run's steps, unless they were taken."""
    if read_manifest(run.folder).get("status") == "finished":
        return
    command = [sys.executable, "-m", "zoft", "train", str(recipe), *run.changes]
    print(f"{run.folder.name} ...", file=sys.stderr, flush=True)
    with run.folder.with_name(f"{run.folder.name}.log").open("a", encoding="utf-8") as log:
        subprocess.run(
            [*command, "--output-dir", str(run.folder), "--resume", "auto"],
            stdout=log, stderr=subprocess.STDOUT, check=True,
        )  # fmt: skip


def table(runs: list[Run]) -> list[str]:
    """One row for each contestant: memory, seconds, and its held-out loss over the steps."""
    lines = [
        "| exact | lr | peak MiB (planned) | seconds a step | held-out loss: steps |",
        "|---" * 5 + "|",
    ]
    for run in runs:
        manifest = read_manifest(run.folder)
        peak, planned = manifest["peak_memory_bytes"] >> 20, manifest["planned_memory_bytes"] >> 20
        curve = ", ".join(f"{step}: {loss:.3f}" for step, loss in sorted(run.losses().items()))
        lines.append(
            f"| {run.tail} | {run.lr:g} | {peak:,} ({planned:,}) | {run.seconds:.2f} | {curve} |"
        )
    return lines


if __name__ == "__main__":
    main()
