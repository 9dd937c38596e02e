"""The values that `auto` stands for where they follow from the recipe alone."""

from __future__ import annotations

from zoft.recipe.schema import Recipe
from zoft.recipe.sections.data import with_task
from zoft.recipe.sections.optimizer import (
    SCALAR_WINDOW,
    WINDOW,
    OptimizerSection,
    moments_of,
    structure_and_scope,
)
from zoft.recipe.sections.tune import TuneSection

# (what learns, optimizer.name) -> lr. MeZO's and R-AdaZO's published grids for lora, for prefix and for
# full tuning with mezo. Full r-adazo is ours, and bears a longer step where every example has a
# direction of its own. ia3, prompt and norm are ours: with r-adazo measured (docs/tuning.md), with mezo
# scaled by the slopes that were seen there; bias is taken over from norm.
LEARNING_RATES = {
    ("lora", "r-adazo"): 5e-5,
    ("lora", "mezo"): 1e-4,
    ("ia3", "r-adazo"): 5e-3,
    ("ia3", "mezo"): 5e-3,
    ("prefix", "r-adazo"): 1e-2,
    ("prefix", "mezo"): 1e-2,
    ("prompt", "r-adazo"): 5e-3,
    ("prompt", "mezo"): 1e-3,
    ("full", "r-adazo"): 1e-4,
    ("full", "mezo"): 1e-6,
    ("bias", "r-adazo"): 1e-3,
    ("bias", "mezo"): 1e-4,
    ("norm", "r-adazo"): 1e-3,
    ("norm", "mezo"): 1e-4,
}
EXAMPLE_LEARNING_RATE = 2e-4
# LoRA's and the prefix's are MeZO's. In bfloat16 the slopes of ia3 were 2.4 times the noise at 1e-2.
PERTURBATIONS = {
    "lora": 1e-2, "ia3": 3e-2, "prefix": 1e-1, "prompt": 1e-2, "bias": 1e-2, "norm": 1e-2,
}  # fmt: skip


def what_learns(tune: TuneSection) -> str:
    """The key of the two tables above."""
    return tune.only if tune.method == "full" and tune.only != "all" else tune.method


def with_defaults(recipe: Recipe) -> Recipe:
    """Fill in every `auto` that needs neither the model nor the machine. Idempotent.

    `device`, `model.compute_dtype`, `model.residency`, `offload`, `memory`, `tune.target_modules`,
    `data.format` where the columns decide, `optimizer.paired` and, for full tuning,
    `optimizer.perturbation` stay `auto`.
    """
    model, objective, train = recipe.model, recipe.objective, recipe.train
    data = with_task(recipe.data)
    if model.dtype == "auto":
        model = model.model_copy(update={"dtype": "float32"})
    if objective.name == "auto":
        name = "choice" if data.format == "classification" else "lm"
        objective = objective.model_copy(update={"name": name})
    if train.micro_batch_size == "auto":
        train = train.model_copy(update={"micro_batch_size": train.batch_size})
    if train.group_by_length == "auto":
        train = train.model_copy(update={"group_by_length": True})
    offload = recipe.offload
    if offload.writeback == "auto":
        # The device applies an update faster than a bus that is otherwise idle takes it back.
        offload = offload.model_copy(update={"writeback": "device"})
    return recipe.model_copy(
        update={
            "model": model,
            "data": data,
            "offload": offload,
            "objective": objective,
            "optimizer": _optimizer(recipe),
            "train": train,
        }
    )


def _optimizer(recipe: Recipe) -> OptimizerSection:
    method, optimizer = recipe.tune.method, recipe.optimizer
    learns = what_learns(recipe.tune)
    moments = moments_of(method, optimizer)
    structure, scope = structure_and_scope(method, optimizer)
    filled: dict[str, object] = {"moments": moments, "structure": structure, "scope": scope}
    if optimizer.lr == "auto":
        longer = scope == "example" and (learns, optimizer.name) == ("full", "r-adazo")
        rate = LEARNING_RATES[learns, optimizer.name]
        filled["lr"] = EXAMPLE_LEARNING_RATE if longer else rate
    if optimizer.window == "auto":
        filled["window"] = WINDOW if moments == "window" else SCALAR_WINDOW
    if optimizer.perturbation == "auto" and learns in PERTURBATIONS:
        filled["perturbation"] = PERTURBATIONS[learns]
    return optimizer.model_copy(update=filled)
