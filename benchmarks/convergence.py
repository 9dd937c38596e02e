"""R-AdaZO, MeZO and first-order AdamW on SST-2: rates tuned on validation, the best scored on test.

    python benchmarks/convergence.py --sst2 DIR|HubId [--jobs 2] [--only per-example ...]

DIR holds train.jsonl, validation.jsonl and test.jsonl with `text` and `label`; a set on the Hub has
these splits and columns (SetFit/sst2). Every rate runs with the first seed; the rate with the highest
validation accuracy on its curve (then the lowest loss) runs with all seeds, and only those see the test
set, with their last weights. `tail`: the head's rows alone; it takes one step that moves nothing. A
forward pass is one of a batch of 16; a step of AdamW counts as three, one of `tail-all` as four.
Evaluations are not counted. Every run is a folder below --runs: finished ones are not repeated, stopped
ones go on. With --jobs N, N runs at a time take one thread on a core of their own.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from queue import Queue

from curves import Run, best, curves, reached, table
from machine import HERE, report

from zoft.inference.evaluate import evaluate

MEZO_RATES = (1e-7, 1e-6, 1e-5, 3e-5, 1e-4)
MEZO = ("optimizer.name=mezo", "optimizer.structure=dense")
GRID: dict[str, tuple[tuple[str, ...], tuple[float, ...]]] = {  # overrides, rates
    "per-example": (
        ("optimizer.structure=rank1", "optimizer.scope=example"), (1e-4, 2e-4, 4e-4)
    ),
    "dense": (("optimizer.structure=dense",), (1e-4, 2e-4, 4e-4)),
    "mezo-rademacher": ((*MEZO, "optimizer.distribution=rademacher"), MEZO_RATES),
    "mezo-gaussian": ((*MEZO, "optimizer.distribution=gaussian"), MEZO_RATES),
    "tail": (("tune.tail=head", "eval.every=0"), (1e-9,)),
    "tail-body": (("tune.tail=head",), (3e-5, 1e-4, 2e-4)),
    "tail-blocks4": (("tune.tail=blocks:4", "optimizer.lr=1e-4"), (1e-5, 3e-5, 1e-4)),
    "tail-all": (("tune.tail=blocks:auto", "optimizer.lr=1e-4"), (3e-5, 1e-4)),
    "mezo-tail": ((*MEZO, "optimizer.distribution=rademacher", "tune.tail=head"), (1e-5, 3e-5)),
    "adamw": ((), (1e-5, 3e-5)),
    "adamw-lora": (("tune.method=lora",), (3e-4, 1e-3)),
}  # fmt: skip
RATE = {"tail-blocks4": "tune.tail_lr", "tail-all": "tune.tail_lr"}  # else optimizer.lr
FIRST_ORDER = ("adamw", "adamw-lora", "tail-all")
DIVERGED = 6  # zoft's exit code
RECIPE = """
model: {{name: {model}}}
data:
  train: {{{train}, limit: {rows}}}
  eval: {{{validation}}}
  template: "{{text}} It was"
  labels: {{0: terrible, 1: great}}
train: {{batch_size: 16}}
eval: {{batch_size: 64, every: {every}}}
"""


def main() -> None:
    """Run what is missing, then print the tables of what there is."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--sst2", required=True, metavar="DIR|HubId")
    parser.add_argument("--model", default=".demo/SmolLM2-135M-Instruct.Q4_1.gguf")
    parser.add_argument("--runs", type=Path, default=Path("runs/convergence"))
    parser.add_argument("--rows", type=int, default=1000, help="training rows")
    parser.add_argument("--steps", type=int, default=500, help="zeroth-order steps")
    parser.add_argument("--first-order-steps", type=int, default=150)
    parser.add_argument("--every", type=int, default=25, help="steps between evaluations")
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("--only", nargs="+", default=list(GRID), choices=GRID)
    parser.add_argument("--rates", type=float, nargs="+", help="instead of the grid's")
    parser.add_argument(
        "--set",
        nargs="+",
        default=[],
        metavar="KEY=VALUE",
        help="overrides, with --runs of its own",
    )
    parser.add_argument("--jobs", type=int, default=1)
    parser.add_argument("--append", action="store_true", help="append the tables to RESULTS.md")
    a = parser.parse_args()
    a.runs.mkdir(parents=True, exist_ok=True)
    recipe = a.runs / "recipe.yaml"
    settings = {x: _source(a.sst2, x) for x in ("train", "validation")}
    text = RECIPE.format(model=a.model, rows=a.rows, every=a.every, **settings)
    recipe.write_text(text, encoding="utf-8")

    def run(method: str, lr: float, seed: int) -> Run:
        steps = {"tail": 1, **dict.fromkeys(FIRST_ORDER, a.first_order_steps)}
        return Run(method, lr, seed, steps.get(method, a.steps))

    grid = [run(m, lr, a.seeds[0]) for m in a.only for lr in a.rates or GRID[m][1]]
    _all(grid, recipe, a)
    tuned = {
        m: max((x for x in grid if x.method == m), key=lambda x: best(x, a.runs)) for m in a.only
    }
    chosen = {m: [run(m, x.lr, seed) for seed in a.seeds] for m, x in tuned.items()}
    _all([x for runs in chosen.values() for x in runs], recipe, a)
    tests = {x: _test(x, recipe, a) for runs in chosen.values() for x in runs if x.finished(a.runs)}
    runs = [*grid, *(x for some in chosen.values() for x in some if x not in grid)]
    every = curves(runs, a.runs, a.every)
    lines = [*table(runs, tests, a.runs), "", *reached(chosen, runs, a.runs), "", *every]
    pinned = ", one thread a run" if a.jobs > 1 else ""
    report(f"SST-2, {a.rows} training rows{pinned}", lines, to_file=a.append)


def _source(sst2: str, split: str, comma: str = ", ") -> str:
    """The split's address in a recipe."""
    folder = Path(sst2).expanduser()
    if folder.is_dir():
        return f"path: {folder / f'{split}.jsonl'}"
    return f"path: {sst2}{comma}split: {split}"


def _all(runs: list[Run], recipe: Path, a: argparse.Namespace) -> None:
    """Run what is not finished, `--jobs` at a time."""
    cores: Queue[int] = Queue()
    for core in sorted(os.sched_getaffinity(0))[: a.jobs]:
        cores.put(core)

    def work(run: Run) -> None:
        core = cores.get()
        try:
            _train(run, recipe, core if a.jobs > 1 else None, a)
        finally:
            cores.put(core)

    with ThreadPoolExecutor(min(a.jobs, cores.qsize())) as pool:
        list(pool.map(work, [x for x in runs if not x.finished(a.runs)]))


def _train(run: Run, recipe: Path, core: int | None, a: argparse.Namespace) -> None:
    folder = run.folder(a.runs)
    rate = RATE.get(run.method, "optimizer.lr")
    changes = [*GRID[run.method][0], f"{rate}={run.lr}", f"seed={run.seed}"]
    changes += [f"train.steps={run.steps}", *a.set, "--output-dir", str(folder)]
    if run.method.startswith("adamw"):
        command = [sys.executable, str(HERE / "first_order.py"), str(recipe), *changes]
    else:
        command = [sys.executable, "-m", "zoft", "train", str(recipe), *changes, "--resume", "auto"]
    environment = dict(os.environ)
    if core is not None:
        environment["OMP_NUM_THREADS"] = "1"
        if shutil.which("taskset"):
            command = ["taskset", "-c", str(core), *command]
    print(f"{folder.name} ...", file=sys.stderr, flush=True)
    with folder.with_name(f"{folder.name}.log").open("a", encoding="utf-8") as log:
        done = subprocess.run(command, stdout=log, stderr=subprocess.STDOUT, env=environment)
    if done.returncode not in (0, DIVERGED):
        raise SystemExit(f"{folder.name} failed: see {log.name}")


def _test(run: Run, recipe: Path, a: argparse.Namespace) -> dict[str, float]:
    """The last weights' score on the test set; taken once, and kept beside the run."""
    kept = run.folder(a.runs) / "test.json"
    if not kept.exists():
        where = _source(a.sst2, "test", "\n").replace("path: ", "data.test.path=")
        where = where.replace("split: ", "data.test.split=")
        final = str(run.folder(a.runs) / "final")
        changes = [x for x in a.set if not x.startswith("data.eval")]
        changes += ["~data.eval", *where.split("\n")]
        found = evaluate(final, str(recipe), changes)["test"]
        kept.write_text(json.dumps(found), encoding="utf-8")
    stored: dict[str, float] = json.loads(kept.read_text(encoding="utf-8"))
    return stored


if __name__ == "__main__":
    main()
