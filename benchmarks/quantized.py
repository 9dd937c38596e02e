"""LoRA on quantised bases: can the loss's change be measured, and what memory does the model take?

    python benchmarks/quantized.py [--directions 6] [--append]

Signal-to-noise of c as `zoft train` measures it at its start (diagnostics.measure_noise), on the first
batch of the recipe. Two more schemes round activations to 8 bits as well; zoft does not offer them.
Each figure comes from a process of its own. Raw numbers: runs/bench/quantized.jsonl.
"""

from __future__ import annotations

import argparse
import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch
from machine import Log, arguments, report
from subject import batch_of, recipe_of, rows_of
from transformers import AutoModelForCausalLM, BitsAndBytesConfig, PreTrainedModel, TorchAoConfig

from zoft.engine.diagnostics import measure_noise
from zoft.engine.estimator import Estimator
from zoft.engine.objectives.objective import batch_losses, objective_for
from zoft.engine.probe.directions import Directions
from zoft.engine.probe.structures.table import DENSE
from zoft.engine.probe.view import ProbedModel
from zoft.models.adapters import attach_adapter
from zoft.models.load import load_model
from zoft.models.storage.fetch import local_safetensors
from zoft.models.trainable import parameter_ids, tuned_parameters
from zoft.recipe.schema import Recipe
from zoft.system.host_memory import hand_back_freed_memory
from zoft.system.silence import quiet

OURS = ("none", "int8", "nf4")
ACTIVATIONS_TOO = ("int8, activations by row (torchao)", "LLM.int8 (bitsandbytes)")
TASKS = [(base, compute) for compute in ("bfloat16", "float32") for base in OURS]
TASKS += [(base, "float32") for base in ACTIVATIONS_TOO]  # where nothing else rounds
PERTURBATION = 1e-2
BATCH = 16


def main() -> None:
    """Run the processes one after the other and print a table."""
    parser = arguments(__doc__, directions=6)
    parser.add_argument("--recipe", default="quickstart-lora")
    parser.add_argument("--child", nargs=2, help=argparse.SUPPRESS)
    a = parser.parse_args()
    if a.child:
        print(json.dumps(_measured(recipe_of(a.recipe), a.directions, *a.child)))
        return
    settings = recipe_of(a.recipe).model_dump(mode="json")
    log = Log("quantized", recipe=settings, directions=a.directions)
    lines = ["| base | compute | signal-to-noise | RMS of c | model in memory |", "|---" * 5 + "|"]
    for base, compute in TASKS:
        if not log.find(base=base, compute=compute):
            log.add(base=base, compute=compute, **_run(a.recipe, a.directions, base, compute))
        [row] = log.find(base=base, compute=compute)
        size = f"{row['bytes'] / 2**20:.0f} MiB" if base in OURS else ""  # others stay in the file
        ratio = f"**{row['signal_to_noise']:.1f}**"
        lines.append(f"| {base} | {compute} | {ratio} | {row['projected_grad']:.2f} | {size} |")
    report(f"LoRA on quantised bases, perturbation {PERTURBATION:g}", lines, to_file=a.append)


def _run(recipe: str, directions: int, base: str, compute: str) -> dict[str, Any]:
    options = ["--recipe", recipe, "--directions", str(directions), "--child", base, compute]
    done = subprocess.run(
        [sys.executable, __file__, *options], stdout=subprocess.PIPE, text=True, check=True
    )
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def _measured(recipe: Recipe, directions: int, base: str, compute: str) -> dict[str, Any]:
    hand_back_freed_memory()
    choices, _ = rows_of(recipe, BATCH)
    before = _private()
    model = _load(recipe, base, getattr(torch, compute))
    size = _private() - before
    adapted = attach_adapter(model, recipe.tune, recipe.seed)
    tuned = tuned_parameters(adapted, recipe.tune)
    example = torch.tensor([[1, 2, 3, 4]])
    view = ProbedModel(adapted, tuned, parameter_ids(tuned), getattr(torch, compute), example)
    objective = objective_for("choice")
    batch = batch_of(objective, choices)
    estimator = Estimator(
        view, Directions(0, False, DENSE), perturbation=PERTURBATION, paired=base in OURS
    )
    noise = measure_noise(estimator, lambda: batch_losses(objective, view, [batch]), directions)
    return {
        "signal_to_noise": noise.signal_to_noise,
        "projected_grad": noise.projected_grad,
        "bytes": size,
    }


def _private() -> int:
    """Bytes of this process that are in no file."""
    text = Path("/proc/self/status").read_text(encoding="ascii")
    return 1024 * int(re.findall(r"RssAnon:\s*(\d+)", text)[0])


def _load(recipe: Recipe, base: str, dtype: torch.dtype) -> PreTrainedModel:
    where = local_safetensors(recipe.model.name, recipe.model.revision)
    if base in OURS:
        section = recipe.model.model_copy(update={"quantization": base})
        return load_model(where, section, dtype=dtype, device="cpu").model
    with quiet():
        model: PreTrainedModel = AutoModelForCausalLM.from_pretrained(
            str(where), dtype=dtype, quantization_config=_refused(base), device_map={"": "cpu"}
        )
    model.config.use_cache = False
    return model


def _refused(base: str) -> TorchAoConfig | BitsAndBytesConfig:
    if "torchao" in base:
        from torchao.quantization import Int8DynamicActivationInt8WeightConfig

        return TorchAoConfig(Int8DynamicActivationInt8WeightConfig(set_inductor_config=False))
    return BitsAndBytesConfig(load_in_8bit=True)  # type: ignore[no-untyped-call]


if __name__ == "__main__":
    main()
