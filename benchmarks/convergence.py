"""R-AdaZO and MeZO at equal forward passes: tuned on the validation set, reported on the test set.

    python benchmarks/convergence.py --data SST2_FOLDER [--steps 200] [--seeds 1 2]

SST2_FOLDER holds train.jsonl, validation.jsonl and test.jsonl with `text` and `label`. Each rate of the
grid is run with the first seed; the best on validation with all seeds; only those see the test set.
Every run is a folder below --runs, so that the script can be stopped and started again. Prints (and
appends to RESULTS.md, with --append) a markdown table.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from machine import append, stamp

from zoft.evaluate import evaluate

GRID = {"r-adazo": [1e-4, 2e-4, 4e-4], "mezo": [1e-5, 3e-5, 1e-4]}
RECIPE = """
model: {{name: {model}}}
data:
  train: {{path: {data}/train.jsonl, limit: {rows}}}
  eval: {{path: {data}/validation.jsonl}}
  template: "{{text}} It was"
  labels: {{0: terrible, 1: great}}
train: {{batch_size: 16}}
eval: {{batch_size: 64}}
"""


def main() -> None:
    """Run what is missing, then print the table."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--model", default=".demo/SmolLM2-135M-Instruct.Q4_1.gguf")
    parser.add_argument("--runs", type=Path, default=Path("runs/convergence"))
    parser.add_argument("--rows", type=int, default=1000)
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--append", action="store_true", help="append the table to RESULTS.md")
    a = parser.parse_args()
    a.runs.mkdir(parents=True, exist_ok=True)
    recipe = a.runs / "recipe.yaml"
    recipe.write_text(RECIPE.format(model=a.model, data=a.data, rows=a.rows), encoding="utf-8")
    lines = list(_table(recipe, a.runs, a.data, a.steps, a.seeds))
    text = "\n".join(
        [f"### SST-2, {a.rows} training rows, {2 * a.steps} forward passes", "", *lines]
    )
    text += f"\n\n{stamp()}\n"
    print(text)
    if a.append:
        append(text)


def _table(recipe: Path, runs: Path, data: Path, steps: int, seeds: list[int]) -> Iterator[str]:
    yield "| optimizer | lr | seed | validation: before → after | test accuracy (loss) |"
    yield "|---|---|---|---|---|"
    for name, rates in GRID.items():
        tried = {lr: _run(recipe, runs, name, lr, seeds[0], steps) for lr in rates}
        best = max(
            rates, key=lambda lr: (tried[lr]["after"]["accuracy"], -tried[lr]["after"]["loss"])
        )
        accuracies = []
        for lr in rates:
            for seed in seeds if lr == best else seeds[:1]:
                found = _run(recipe, runs, name, lr, seed, steps)
                test = ""
                if lr == best:
                    score = _test(recipe, found["folder"], data)
                    accuracies.append(score["accuracy"])
                    test = f"**{score['accuracy']:.3f}** ({score['loss']:.3f})"
                before, after = found["before"], found["after"]
                yield (
                    f"| {name} | {lr:g} | {seed} | {before['accuracy']:.3f} → {after['accuracy']:.3f} "
                    f"({before['loss']:.3f} → {after['loss']:.3f}) | {test} |"
                )
        yield f"| {name} | {best:g} | mean | | **{statistics.mean(accuracies):.3f}** |"


def _run(recipe: Path, runs: Path, name: str, lr: float, seed: int, steps: int) -> dict[str, Any]:
    """Train, or go on, or do nothing if it is finished; the first and the last eval event."""
    folder = runs / f"{name}-lr{lr:g}-seed{seed}-{steps}"
    overrides = [
        f"optimizer.name={name}",
        f"optimizer.lr={lr}",
        f"seed={seed}",
        f"train.steps={steps}",
    ]
    _zoft("train", str(recipe), *overrides, "--output-dir", str(folder), "--resume", "auto")
    events = [json.loads(line) for line in (folder / "metrics.jsonl").open(encoding="utf-8")]
    evals = {event["step"]: event for event in events if event["event"] == "eval"}
    return {"folder": folder, "before": evals[0], "after": evals[steps]}


def _test(recipe: Path, folder: Path, data: Path) -> dict[str, float]:
    """Scored once, and kept beside the run."""
    kept = folder / "test.json"
    if not kept.exists():
        changes = ["~data.eval", f"data.test.path={data / 'test.jsonl'}"]
        found = evaluate(str(folder), str(recipe), changes)["test"]
        kept.write_text(json.dumps(found), encoding="utf-8")
    stored: dict[str, float] = json.loads(kept.read_text(encoding="utf-8"))
    return stored


def _zoft(*arguments: str) -> None:
    subprocess.run([sys.executable, "-m", "zoft", *arguments], check=True)


if __name__ == "__main__":
    main()
