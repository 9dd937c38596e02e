"""A whole R-AdaZO step over two plain inference passes of the same batch, interleaved in one process.

    python benchmarks/step_time.py [--repeats 15] [--append]

The plain passes run an untouched transformers model stored in the compute type, with the same lean
head: the hidden states of the scored positions times the label rows. The step measures both probes,
writes the journal's line and updates every weight. Medians and the median of the pairwise ratios.
"""

from __future__ import annotations

import argparse
import gc
import statistics
import tempfile
import time
from pathlib import Path

import torch
from machine import append, stamp

from zoft.data.encoding import encode
from zoft.data.sources import load_rows
from zoft.journal import Entry, Journal
from zoft.models.convert import local_safetensors
from zoft.models.load import load_model, load_tokenizer
from zoft.models.tuned import parameter_ids, tuned_parameters
from zoft.objectives.batch import Batch
from zoft.objectives.objective import Objective, objective_for
from zoft.recipe.load import load_recipe
from zoft.zo.estimators import Estimator
from zoft.zo.optimizers.radazo import RAdaZO, Rule
from zoft.zo.optimizers.sweep import tuned_weights
from zoft.zo.probe import View

RULE = Rule(
    betas=(0.9, 0.99),
    eps=1e-8,
    bias_correction="v",
    moments="scalar",
    window=22,
    fold_momentum=True,
    weight_decay=0.0,
)


def main() -> None:
    """Measure both compute types and print two rows."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--recipe", default="quickstart")
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--repeats", type=int, default=15)
    parser.add_argument("--dtypes", nargs="+", default=["float32", "bfloat16"])
    parser.add_argument("--append", action="store_true", help="append the table to RESULTS.md")
    a = parser.parse_args()
    recipe = load_recipe(a.recipe)
    where = local_safetensors(recipe.model.name, recipe.model.revision)
    tokenizer = load_tokenizer(where, recipe.model)
    rows = load_rows(recipe.data.train.model_copy(update={"limit": a.batch * (a.repeats + 2)}))
    examples = encode(rows, recipe.data, tokenizer, choice=True).examples
    objective = objective_for("choice")
    batches = [
        objective.batches(examples[i : i + a.batch], a.batch, torch.device("cpu"))[0]
        for i in range(0, len(examples), a.batch)
    ]
    lines = [
        "| compute | tokens in a batch (median) | two passes | probes | update | step / two passes |",
        "|---|---|---|---|---|---|",
    ]
    for dtype in a.dtypes:
        model = load_model(where, recipe.model, dtype=torch.float32, device="cpu")
        plain = load_model(where, recipe.model, dtype=getattr(torch, dtype), device="cpu")
        lines.append(_row(dtype, model, plain, recipe.tune, objective, batches))
        del model, plain
        gc.collect()
    text = f"### Step time, batch {a.batch}, full tuning, scalar moments\n\n" + "\n".join(lines)
    text += f"\n\n{stamp()}\n"
    print(text)
    if a.append:
        append(text)


def _row(
    dtype: str, model: torch.nn.Module, plain: torch.nn.Module, tune: object,
    objective: Objective, batches: list[Batch],
) -> str:  # fmt: skip
    tuned = tuned_parameters(model, tune)  # type: ignore[arg-type]
    ids = parameter_ids(tuned)
    view = View(model, tuned, ids, getattr(torch, dtype), batches[0].input_ids[:1])
    estimator = Estimator(view, seed=0, gaussian=False, perturbation=3e-3)
    optimizer = RAdaZO(tuned_weights(tuned, ids, set()), RULE, seed=0, gaussian=False)
    times: list[tuple[float, float, float]] = []
    with (
        tempfile.TemporaryDirectory() as folder,
        Journal.create(Path(folder) / "j", {}, 5.0) as log,
    ):
        for step, batch in enumerate(batches, start=1):
            begun = time.perf_counter()
            for _ in range(2):
                _inference(plain, batch)
            passed = time.perf_counter()
            found = estimator.measure(
                step, lambda batch=batch: objective.evaluate(view, [batch], masked=False).mean  # type: ignore[misc]
            )  # fmt: skip
            probed = time.perf_counter()
            log.append(Entry(found, 1e-6))
            optimizer.update(found, 1e-6)
            times.append((passed - begun, probed - passed, time.perf_counter() - probed))
    times = times[2:]  # kernels load, the arena grows
    two, probes, update = (statistics.median(column) for column in zip(*times, strict=True))
    ratios = sorted((b + c) / a for a, b, c in times)
    tokens = int(statistics.median(batch.input_ids.numel() for batch in batches))
    return (
        f"| {dtype} | {tokens} | {two:.3f} s | {probes:.3f} s | {update:.3f} s | "
        f"**{statistics.median(ratios):.3f}** ({ratios[len(ratios) // 4]:.3f} to "
        f"{ratios[-1 - len(ratios) // 4]:.3f}) |"
    )


@torch.no_grad()
def _inference(plain: torch.nn.Module, batch: Batch) -> torch.Tensor:
    """One pass as transformers runs it, and the label rows of the head."""
    hidden = plain.base_model(input_ids=batch.input_ids, use_cache=False).last_hidden_state  # type: ignore[operator]
    scored = hidden.reshape(-1, hidden.shape[-1])[batch.positions]
    head = plain.get_output_embeddings().weight  # type: ignore[operator]
    logits: torch.Tensor = scored.float() @ head[batch.vocab].float().T
    return logits


if __name__ == "__main__":
    main()
