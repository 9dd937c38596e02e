"""A recipe without `auto`: its type, and the choices that follow from the recipe alone.

planning/resolve.py makes the others, which need the machine, the rows or the model's config.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal, TypeVar

from pydantic import SerializeAsAny, ValidationError

from zoft.errors import RecipeError
from zoft.recipe.schema import (
    ModelSection,
    ObjectiveSection,
    OffloadSection,
    Recipe,
    TrainSection,
)
from zoft.recipe.sections.base import Counted
from zoft.recipe.sections.data import with_task
from zoft.recipe.sections.optimizer import AnyOptimizer
from zoft.recipe.sections.optimizers.rule import ResolvedOptimizer, resolved_optimizer
from zoft.recipe.sections.tune import TuneSection

# LoRA's and the prefix's are MeZO's. In bfloat16 the slopes of ia3 were 2.4 times the noise at 1e-2.
PERTURBATIONS = {
    "lora": 1e-2, "ia3": 3e-2, "prefix": 1e-1, "prompt": 1e-2, "bias": 1e-2, "norm": 1e-2,
}  # fmt: skip


DTypeName = Literal["float32", "bfloat16", "float16"]


class ResolvedModel(ModelSection):
    dtype: DTypeName
    compute_dtype: DTypeName


class ResolvedObjective(ObjectiveSection):
    name: Literal["choice", "lm"]


class ResolvedTrain(TrainSection):
    micro_batch_size: Counted
    group_by_length: bool


class ResolvedOffload(OffloadSection):
    writeback: Literal["device", "host"]


class Resolved(Recipe):
    """A recipe whose automatic choices are made: what a run works with, and resolved.yaml holds.

    Left open are those of which a run finds out later: `model.residency` until the placement is
    chosen, `optimizer.paired` until the preflight, `data.format` and `eval.metric` until rows are read.
    """

    output_dir: str
    model: ResolvedModel
    objective: ResolvedObjective
    optimizer: SerializeAsAny[ResolvedOptimizer]
    train: ResolvedTrain
    offload: ResolvedOffload


def as_resolved(recipe: Recipe) -> Resolved:
    """`recipe`, in which every choice has been made, by its type.

    Raises RecipeError where a choice of before does not go with the recipe (a smaller batch, say).
    """
    narrowed = {
        "model": _valid("model.", lambda: ResolvedModel.model_validate(dict(recipe.model))),
        "objective": ResolvedObjective.model_validate(dict(recipe.objective)),
        "optimizer": _valid("optimizer.", lambda: resolved_optimizer(recipe.optimizer)),
        "train": _valid("train.", lambda: ResolvedTrain.model_validate(dict(recipe.train))),
        "offload": ResolvedOffload.model_validate(dict(recipe.offload)),
        "output_dir": recipe.output_dir or "runs/recipe",
    }
    return _valid("", lambda: Resolved.model_validate({**dict(recipe), **narrowed}))


_Valid = TypeVar("_Valid")


def _valid(section: str, make: Callable[[], _Valid]) -> _Valid:
    """What `make` makes; pydantic's errors as RecipeError, with the names of keys."""
    try:
        return make()
    except ValidationError as error:
        lines = []
        for detail in error.errors():
            key = section + ".".join(map(str, detail["loc"]))
            lines.append(f"{key}: {detail.get('ctx', {}).get('error', detail['msg'])}")
        raise RecipeError("\n".join(lines)) from error


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
