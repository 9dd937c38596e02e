"""The values that `auto` stands for where they follow from the recipe alone."""

from __future__ import annotations

from zoft.recipe.schema import Recipe
from zoft.recipe.sections.data import with_task
from zoft.recipe.sections.optimizer import AnyOptimizer
from zoft.recipe.sections.tune import TuneSection

# LoRA's and the prefix's are MeZO's. In bfloat16 the slopes of ia3 were 2.4 times the noise at 1e-2.
PERTURBATIONS = {
    "lora": 1e-2, "ia3": 3e-2, "prefix": 1e-1, "prompt": 1e-2, "bias": 1e-2, "norm": 1e-2,
}  # fmt: skip


def what_learns(tune: TuneSection) -> str:
    """The key of PERTURBATIONS and of the rules' LEARNING_RATES."""
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


def _optimizer(recipe: Recipe) -> AnyOptimizer:
    method, optimizer = recipe.tune.method, recipe.optimizer
    learns = what_learns(recipe.tune)
    structure, scope = optimizer.structure_and_scope(method)
    filled = {"structure": structure, "scope": scope, **optimizer.own_choices(method)}
    if optimizer.lr == "auto":
        filled["lr"] = optimizer.default_lr(learns, scope)
    if optimizer.perturbation == "auto" and learns in PERTURBATIONS:
        filled["perturbation"] = PERTURBATIONS[learns]
    return optimizer.model_copy(update=filled)
