"""The values that `auto` stands for where they follow from the recipe alone."""

from __future__ import annotations

from zoft.recipe.data_section import with_task
from zoft.recipe.optimizer_section import (
    SCALAR_WINDOW,
    WINDOW,
    OptimizerSection,
    moments_of,
    structure_and_scope,
)
from zoft.recipe.schema import Recipe

# (tune.method, optimizer.name) -> lr. MeZO's and R-AdaZO's published grids; full r-adazo is ours,
# and bears a longer step where every example has a direction of its own.
LEARNING_RATES = {
    ("lora", "r-adazo"): 5e-5,
    ("lora", "mezo"): 1e-4,
    ("full", "r-adazo"): 1e-4,
    ("full", "mezo"): 1e-6,
}
EXAMPLE_LEARNING_RATE = 2e-4
LORA_PERTURBATION = 1e-2


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
    moments = moments_of(method, optimizer)
    structure, scope = structure_and_scope(method, optimizer)
    filled: dict[str, object] = {"moments": moments, "structure": structure, "scope": scope}
    if optimizer.lr == "auto":
        longer = scope == "example" and (method, optimizer.name) == ("full", "r-adazo")
        rate = LEARNING_RATES[method, optimizer.name]
        filled["lr"] = EXAMPLE_LEARNING_RATE if longer else rate
    if optimizer.window == "auto":
        filled["window"] = WINDOW if moments == "window" else SCALAR_WINDOW
    if optimizer.perturbation == "auto" and method == "lora":
        filled["perturbation"] = LORA_PERTURBATION
    return optimizer.model_copy(update=filled)
