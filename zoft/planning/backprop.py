"""What back-propagation would need, so that a user learns when zeroth-order tuning is not the answer."""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn

from zoft.models.activations import trace_saved
from zoft.models.meta import build_outline, load_config
from zoft.planning.memory.footprint import CUDA_CONTEXT
from zoft.planning.workload import Shape
from zoft.recipe.resolved import Resolved
from zoft.recipe.sections.tune import TuneSection
from zoft.system.device import DTYPES
from zoft.system.process_size import libraries

ASSUMED = (
    "weights and gradients in float32 (LoRA: the base in the compute type), AdamW's two moments in "
    "float32, activations of the whole micro-batch kept, no checkpointing, logits at every position"
)


@dataclass(frozen=True, slots=True)
class FirstOrder:
    """Bytes on the device for AdamW on all weights and on a LoRA adapter; on a CPU, of the process."""

    full: int
    lora: int
    assumed: str = ASSUMED


def first_order(recipe: Resolved, shape: Shape) -> FirstOrder | None:
    """For the recipe's batch and lengths; None for a model that cannot be traced."""
    try:
        return FirstOrder(_bytes(recipe, shape, lora=False), _bytes(recipe, shape, lora=True))
    except Exception:  # a model that looks at its numbers may raise anything on the meta device
        return None


def _bytes(recipe: Resolved, shape: Shape, *, lora: bool) -> int:
    tune = recipe.tune if recipe.tune.method == "lora" else TuneSection(r=recipe.tune.r)
    tune = tune.model_copy(update={"method": "lora" if lora else "full"})
    compute = DTYPES[recipe.model.compute_dtype]
    outline = build_outline(
        load_config(recipe.model),
        tune,
        stored=compute,
        trust_remote_code=recipe.model.trust_remote_code,
    )
    names = {name for name, _ in outline.named_parameters() if not lora or "lora_" in name}
    rows, length = recipe.train.micro_batch_size * shape.train.rows, shape.train.longest
    # The type that is computed in is autocast's: activations come in it, learnt weights stay float32.
    saved = trace_saved(outline, names, rows, length)
    logits = (
        rows * length * shape.vocabulary * (compute.itemsize + 2 * 4)
    )  # float32, and its gradient
    learnt = _numel(outline, names)
    frozen = _numel(outline, {name for name, _ in outline.named_parameters()} - names)
    base = libraries() if recipe.device == "cpu" else CUDA_CONTEXT
    return base + 16 * learnt + frozen * compute.itemsize + saved + logits


def _numel(model: nn.Module, names: set[str]) -> int:
    return sum(p.numel() for name, p in model.named_parameters() if name in names)
