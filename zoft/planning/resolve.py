"""Every automatic choice of a recipe, made once, in one place: `Recipe` to `Resolved`.

train, range, eval, plan and validate all call `resolve`; `with_data` adds what the rows decide.
"""

from __future__ import annotations

from contextlib import suppress
from typing import TypeVar, cast

from pydantic import BaseModel
from transformers import PreTrainedModel

from zoft.data.sets import Data, metric_of
from zoft.errors import EnvironmentProblem
from zoft.models.meta import build_outline, load_config
from zoft.models.quantization import library_of
from zoft.models.targets import target_endings
from zoft.recipe.resolved import Resolved, as_resolved, with_defaults
from zoft.recipe.schema import Recipe
from zoft.recipe.sections.tune import AUTO_BLOCKS, TuneSection
from zoft.system.device import DTYPES, choose_device, fast_dtype

# docs/methods.md#noise-of-the-forward-pass: a probe must stand out of the forward pass's rounding noise.
PERTURBATION = {"float32": 1e-3, "float16": 1e-3, "bfloat16": 3e-3}

_Section = TypeVar("_Section", bound=BaseModel)
_Recipe = TypeVar("_Recipe", bound=Recipe)


def resolve(recipe: Recipe, previous: Recipe | None = None, *, absent: bool = False) -> Resolved:
    """`recipe` with every choice made that needs no row of its data.

    `previous` is the resolved recipe of the run that is resumed: its choices are kept. With `absent`
    an accelerator that is not here is planned for all the same, computing in bfloat16, and a model
    that is not here has its adapter's targets left open. Raises
    EnvironmentProblem for a device or a library (model.quantization) that is not there, RecipeError
    for a device that torch does not know and for adapter targets that the model does not have.
    """
    if previous is not None:
        recipe = keep_choices(recipe, previous)
    recipe = with_defaults(recipe)
    recipe = on_device(recipe, absent=absent)
    recipe = _with_perturbation(recipe)
    with suppress(*([EnvironmentProblem] if absent else [])):
        recipe = _with_targets(recipe)
    return as_resolved(recipe)


def with_data(recipe: _Recipe, data: Data) -> _Recipe:
    """`recipe` with what its rows decide: data.format, and eval.metric where there is an eval set."""
    settled = recipe.data.model_copy(update={"format": data.format})
    evaluation = recipe.eval
    if "eval" in data.sets:
        metric = metric_of(evaluation, data.examples["eval"])
        evaluation = evaluation.model_copy(update={"metric": metric})
    return recipe.model_copy(update={"data": settled, "eval": evaluation})


def keep_choices(recipe: Recipe, previous: Recipe) -> Recipe:
    """Replace every `auto` of the recipe by what the run chose before, but for where the weights are:
    that moves no bit, and how much memory is free may have changed.

    Not validated: `require_same` says better what no longer fits together.
    """
    merged = _merged(recipe, previous)
    model = merged.model.model_copy(update={"residency": recipe.model.residency})
    return merged.model_copy(update={"model": model})


def _merged(now: _Section, before: BaseModel) -> _Section:
    merged = {}
    for name in type(now).model_fields:
        value, old = getattr(now, name), getattr(before, name, None)
        if isinstance(value, BaseModel) and isinstance(old, BaseModel):
            merged[name] = _merged(value, old)
        elif value in ("auto", AUTO_BLOCKS) and old is not None:
            merged[name] = old
    return now.model_copy(update=merged)


def on_device(recipe: Recipe, *, absent: bool = False) -> Recipe:
    """Choose device and model.compute_dtype. Raises EnvironmentProblem, RecipeError (see `resolve`)."""
    model = recipe.model
    library_of(model.quantization)
    here = True
    try:
        device = choose_device(recipe.device)
    except EnvironmentProblem:
        if not absent:
            raise
        device, here = recipe.device if ":" in recipe.device else f"{recipe.device}:0", False
    if model.compute_dtype == "auto":
        dtype = fast_dtype(device) if here else "bfloat16"
        model = model.model_copy(update={"compute_dtype": dtype})
    return recipe.model_copy(update={"device": device, "model": model})


def _with_perturbation(recipe: Recipe) -> Recipe:
    """optimizer.perturbation of full tuning, which must not be rounded away."""
    optimizer = recipe.optimizer
    if optimizer.perturbation != "auto":
        return recipe
    found = PERTURBATION[recipe.model.compute_dtype]
    return recipe.model_copy(
        update={"optimizer": optimizer.model_copy(update={"perturbation": found})}
    )


def _with_targets(recipe: Recipe) -> Recipe:
    """tune.target_modules: the modules that get an adapter in this model."""
    tune, model = recipe.tune, recipe.model
    if tune.target_modules != "auto" or tune.method not in ("lora", "ia3"):
        return recipe
    outline = build_outline(
        load_config(model),
        TuneSection(),
        stored=DTYPES[model.compute_dtype],
        trust_remote_code=model.trust_remote_code,
    )
    found = target_endings(cast(PreTrainedModel, outline), tune)
    tune = tune.model_copy(update={"target_modules": sorted(found)})
    return recipe.model_copy(update={"tune": tune})
