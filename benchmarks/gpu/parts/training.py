"""Whole runs: the loss falls, and where the weights wait moves no byte.

    python -m gpu.parts.training --out DIR

The demo's model and rows if they are in .demo, else its shape with random weights and rows that two
words tell apart. Full and LoRA, each with its weights on the device, in host memory and on disk.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import shutil
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import torch

from gpu.measuring import forget_peak, part
from gpu.shapes import write_model
from zoft.runs.metrics import read_events
from zoft.training.run import train

DEMO = Path(".demo")
RECIPE = """\
model: {{name: {folder}/model}}
tune: {{method: {method}}}
data:
  train: {{path: {folder}/train.jsonl}}
  eval: {{path: {folder}/train.jsonl}}
  template: "{{text}} It was"
  labels: {{0: bad, 1: great}}
optimizer: {{lr: {lr}}}
"""
RATES = {"full": 2e-4, "lora": 2e-3}
BORNE = 5  # times as much by a model of some thousand weights, which has few steps for it
PROBES_ALONE = ("tune.tail=none", "optimizer.lr=2e-4")  # in the quickstart's recipe
RESIDENCIES = ("device", "host", "disk")


@dataclass(frozen=True)
class Task:
    """What is tuned: the recipe of a method, and changes to it."""

    name: str
    recipe: Callable[[str], str]
    changes: tuple[str, ...] = ()


def main() -> None:
    """Exit 1 if a loss did not fall, or a byte was moved."""
    a = part(__doc__)
    right = True
    with TemporaryDirectory() as name:
        task = chosen(Path(name), rehearse=a.rehearse)
        for method in ("full", "lora"):
            same: str | None = None
            shortened = a.rehearse and method == "lora"
            for residency in RESIDENCIES[:1] if shortened else RESIDENCIES:
                row = run(a, task, method, residency, Path(name) / "run")
                same = same or str(row["sha256"])
                row["same bytes"] = row["sha256"] == same
                a.results.emit("Training", task=task.name, method=method, weights=residency, **row)
                right = right and bool(row["loss falls"] and row["same bytes"])
    sys.exit(0 if right else 1)


def chosen(folder: Path, *, rehearse: bool) -> Task:
    """The demo if it is at hand."""
    rows = DEMO / "movies" / "train.jsonl"
    if not rehearse and next(DEMO.glob("*.gguf"), None) and rows.is_file():
        names = {"full": "quickstart", "lora": "quickstart-lora"}
        changes = (f"data.eval.path={rows}", "data.eval.limit=256", "data.train.limit=256")
        return Task("demo", names.__getitem__, changes)
    write_model(folder / "model", "llama-135m", torch.float32, rehearse=rehearse)
    with (folder / "train.jsonl").open("w", encoding="utf-8") as file:
        for i in range(16 if rehearse else 64):
            text = ("xyz" if i % 2 else "abc") * (1 + i % 5)
            file.write(json.dumps({"text": text, "label": i % 2}) + "\n")

    def recipe(method: str) -> str:
        path = folder / f"{method}.yaml"
        lr = RATES[method] * (BORNE if rehearse else 1)
        text = RECIPE.format(folder=folder, method=method, lr=lr)
        path.write_text(text, encoding="utf-8")
        return str(path)

    return Task("random weights", recipe)


def run(
    a: argparse.Namespace, task: Task, method: str, residency: str, folder: Path
) -> dict[str, object]:
    """One run's figures; its folder is gone afterwards."""
    forget_peak(a.device)
    steps = 4 if a.rehearse else 50
    changes = [
        *task.changes,
        *([*PROBES_ALONE] if task.name == "demo" and method == "full" else []),
        f"train.steps={steps}",
        f"train.batch_size={4 if a.rehearse else 16}",
        f"eval.every={steps}",
        "checkpoint.every=0",
        f"model.residency={residency}",
    ]
    train(task.recipe(method), changes, output_dir=str(folder))
    events = read_events(folder / "metrics.jsonl")
    losses = [event["loss"] for event in events if event["event"] == "eval"]
    record = json.loads((folder / "run.json").read_text(encoding="utf-8"))
    [weights] = (folder / "final").glob("*model.safetensors")
    found = {
        "steps": steps,
        "loss before": losses[0],
        "loss after": losses[-1],
        "loss falls": losses[-1] < losses[0],
        "seconds a step": [e["seconds"] for e in events if e["event"] == "train"][-1],
        "peak GB": record["peak_memory_bytes"] / 1e9,
        "planned GB": record["planned_memory_bytes"] / 1e9,
        "sha256": hashlib.sha256(weights.read_bytes()).hexdigest()[:16],
    }
    shutil.rmtree(folder)
    return found


if __name__ == "__main__":
    main()
