"""First-order AdamW on a recipe, with back-propagation: the ceiling that convergence.py reports.

    python benchmarks/first_order.py RECIPE [section.key=value ...] --output-dir FOLDER

The recipe's rows, order, rate, steps, evaluations and compute_dtype (autocast; weights and moments are
float32), all weights or the adapter.
Leaves metrics.jsonl and final/ as `zoft train` does. A run that was stopped begins anew.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import torch
from peers import AdamW, gradients
from subject import CPU, batch_of

from zoft.data.examples import length
from zoft.data.order import Order
from zoft.data.sets import prepare
from zoft.engine.objectives.objective import objective_for
from zoft.engine.probe.view import ProbedModel
from zoft.inference.scoring import score
from zoft.models.adapters import attach_adapter
from zoft.models.load import load_model, load_tokenizer
from zoft.models.storage.fetch import local_safetensors
from zoft.planning.resolve import resolve
from zoft.recipe.load import load_recipe
from zoft.recipe.resolved import with_defaults
from zoft.runs import checkpoint
from zoft.runs.metrics import Metrics, in_words
from zoft.system.device import DTYPES
from zoft.system.host_memory import keep_freed_memory


def main() -> None:
    """Train and leave the run's folder."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("recipe")
    parser.add_argument("overrides", nargs="*")
    parser.add_argument("--output-dir", type=Path, required=True)
    a = parser.parse_args()
    recipe = resolve(with_defaults(load_recipe(a.recipe, a.overrides)))
    where = local_safetensors(recipe.model.name, recipe.model.revision)
    tokenizer = load_tokenizer(where, recipe.model)
    objective = objective_for(recipe.objective.name)

    recipe, sets = prepare(recipe, tokenizer, names=("train", "eval"))
    train, held_out = sets["train"].examples, sets["eval"].examples
    model = load_model(where, recipe.model, dtype=torch.float32, device=CPU).model
    lora = recipe.tune.method == "lora"
    tuned = attach_adapter(model, recipe.tune, recipe.seed) if lora else model
    computing = DTYPES[recipe.model.compute_dtype]
    view = ProbedModel(tuned, {}, {}, computing, torch.tensor([[1, 2, 3, 4]]))
    lengths = np.array([length(x) for x in train]) if recipe.train.group_by_length else None
    order = Order(recipe.seed, recipe.train.batch_size, len(train), lengths)
    a.output_dir.mkdir(parents=True, exist_ok=True)
    metrics = Metrics(a.output_dir / "metrics.jsonl")
    metrics.path.unlink(missing_ok=True)

    def evaluate(step: int) -> None:
        size = recipe.eval.batch_size
        found = score(view, objective, held_out, batch_size=size, device=CPU)
        values = {"accuracy": found.accuracy, "loss": found.mean, "rows": len(held_out)}
        event = metrics.write("eval", step, **values)
        print(f"step {step}: {in_words(event)}", flush=True)

    keep_freed_memory()
    evaluate(0)
    assert isinstance(recipe.optimizer.lr, float)
    with gradients(tuned, only="lora_" if lora else ""):
        method = AdamW(tuned, recipe.optimizer.lr, recipe.optimizer.weight_decay)
        for step in range(1, recipe.train.steps + 1):
            rows = [train[i] for i in order.rows(step)]
            with torch.autocast("cpu", computing, enabled=computing != torch.float32):
                loss = method.step(batch_of(objective, rows))
            metrics.write("train", step, loss=loss)
            every = recipe.eval.every
            if step == recipe.train.steps or (every and step % every == 0):
                evaluate(step)
    checkpoint.save(
        a.output_dir / "final", lambda folder: checkpoint.write_model(folder, tuned, tokenizer)
    )


if __name__ == "__main__":
    main()
