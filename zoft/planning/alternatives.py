"""The same recipe with one thing changed, and whether that fits: overrides to paste."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, replace

from zoft.errors import EnvironmentProblem, OutOfMemory, RecipeError
from zoft.planning.memory.exact_blocks import with_exact_blocks
from zoft.planning.memory.footprint import Footprint, Residency, footprint
from zoft.planning.placement import choose
from zoft.planning.workload import Sets, Shape, Texts, shape_of
from zoft.recipe.resolved import Resolved

Variant = Callable[..., Resolved]  # the recipe as it is resolved with some more overrides


@dataclass(frozen=True, slots=True)
class Alternative:
    """The same recipe with other settings: its footprint, and whether that is within the budgets."""

    overrides: str
    footprint: Footprint
    fits: bool


def alternatives(
    recipe: Resolved,
    shape: Shape,
    sets: Sets | None,
    chosen: Footprint,
    limits: tuple[int, int],
    variant: Variant,
) -> list[Alternative]:
    """Other settings, each with the memory it takes where it fits best; those that change nothing or
    that the recipe does not allow are left out."""
    found = []
    for overrides in _ideas(recipe, shape):
        with suppress(RecipeError, EnvironmentProblem):
            other = variant(*overrides)
            changed = _shape_of(other, recipe, shape, sets)
            other, changed = with_exact_blocks(other, changed, limits[0])
            try:
                taken, fits = choose(other, changed, *limits).footprint, True
            except OutOfMemory:
                taken, fits = smallest(other, changed), False
            if taken != chosen:
                found.append(Alternative(" ".join(overrides), taken, fits))
    return found


def _ideas(recipe: Resolved, shape: Shape) -> list[tuple[str, ...]]:
    train, settings, model = recipe.train, recipe.optimizer, recipe.model
    size = train.micro_batch_size
    full = recipe.tune.method == "full"
    ideas: list[tuple[str, ...]] = []
    if full:
        ideas.append(("tune.method=lora",))
    if full and settings.state() and settings.WITHOUT_STATE:
        ideas.append((settings.WITHOUT_STATE,))
    if full and model.dtype == "float32":
        ideas.append(("model.dtype=bfloat16",))
    if full and settings.structure == "dense" and settings.distribution == "rademacher":
        ideas.append(("optimizer.structure=rank1",))
    if settings.paired is not False and settings.sides == 2:
        ideas.append(("optimizer.paired=false",))
    ideas += [
        (f"train.micro_batch_size={n}",) for n in dict.fromkeys((size // 2, 1)) if 0 < n < size
    ]
    if shape.evaluation and recipe.eval.batch_size > 1:
        ideas.append((f"eval.batch_size={recipe.eval.batch_size // 2}",))
    if shape.train.longest > 16:
        half = shape.train.longest // 2
        ideas.append((f"data.max_length={half}", "data.on_overflow=truncate"))
    ideas += [(f"model.residency={place}",) for place in places(recipe, shape)]
    return ideas


def _shape_of(other: Resolved, recipe: Resolved, shape: Shape, sets: Sets | None) -> Shape:
    """The shape of a variant; made anew only where the model's own is another."""
    if (other.tune, other.model.compute_dtype) != (recipe.tune, recipe.model.compute_dtype):
        shape = shape_of(other, sets, shape.words)
    if other.data.max_length < shape.train.longest:
        train = _shortened(shape.train, other.data.max_length)
        longest = shape.evaluation and _shortened(shape.evaluation, other.data.max_length)
        shape = replace(shape, train=train, evaluation=longest)
    return shape


def _shortened(texts: Texts, length: int) -> Texts:
    return replace(texts, longest=min(texts.longest, length), scored=min(texts.scored, length))


def places(recipe: Resolved, shape: Shape) -> list[Residency]:
    """Where this model's blocks could wait, the fastest first."""
    if shape.fixed or not shape.blocks:
        return ["device"]
    return ["device", "disk"] if recipe.device == "cpu" else ["device", "host", "disk"]


def smallest(recipe: Resolved, shape: Shape) -> Footprint:
    """With no block resident, unless the recipe wants them on the device."""
    wanted = recipe.model.residency
    place = places(recipe, shape)[-1] if wanted == "auto" else wanted
    return footprint(recipe, shape, place).unchecked
