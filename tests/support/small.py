"""A small but whole run: a tiny model on disk, a task it can learn, the recipe for both."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from support import tiny
from zoft.training.run import train

RECIPE = """\
model: {{name: {model}, compute_dtype: float32}}
device: cpu
output_dir: {folder}/run
tune: {{method: {method}}}
data:
  train: {{path: {folder}/train.jsonl}}
  eval: {{path: {folder}/eval.jsonl}}
  template: "{{text}} It was"
  labels: {{0: bad, 1: great}}
optimizer: {{lr: {lr}}}
train: {{steps: 12, batch_size: 4}}
eval: {{every: 5}}
checkpoint: {{every: 5}}
logging: {{every: 4}}
"""


def write(
    folder: Path,
    method: str = "full",
    build: Any = tiny.llama,
    **changes: Any,
) -> Path:
    """Model (`changes`: of its config), data and recipe in `folder`; returns the recipe's path."""
    model = folder / "model"
    build(**changes).save_pretrained(model)
    tiny.tokenizer().save_pretrained(model)
    for name, rows in (("train", 48), ("eval", 20), ("test", 12)):
        with (folder / f"{name}.jsonl").open("w") as file:
            for i in range(rows):
                text = ("xyz" if i % 2 else "abc") * (1 + i % 5)
                file.write(json.dumps({"text": text, "label": i % 2}) + "\n")
    recipe = folder / "recipe.yaml"
    lr = "1e-2" if method == "lora" else "3e-3"
    recipe.write_text(RECIPE.format(model=model, folder=folder, method=method, lr=lr))
    return recipe


def finished_runs(
    folders: pytest.TempPathFactory,
    variants: Mapping[str, tuple[str, Sequence[str]]],
    changes: Sequence[str],
) -> Callable[..., Path]:
    """A function that trains a variant (its method, its changes) once and returns the run's folder,
    beside which its model and its recipe.yaml are."""

    @cache
    def made(variant: str = "rank-1 per example") -> Path:
        method, own = variants[variant]
        folder = folders.mktemp("run")
        train(str(write(folder, method)), [*own, *changes])
        return folder / "run"

    return made
