"""`zoft plan`: what a recipe needs and how long it takes, before anything is loaded."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch

from zoft.calibrate import Seconds, bandwidth, calibrate, passes
from zoft.data.encoding import encode
from zoft.data.examples import Example
from zoft.data.sources import load_rows
from zoft.diffusion import Diffusion, diffusion
from zoft.errors import EnvironmentProblem, OutOfMemory, RecipeError, ZoftError
from zoft.first_order import FirstOrder, first_order
from zoft.footprint import Footprint, Residency, footprint
from zoft.machine import resolve
from zoft.models.convert import local_folder
from zoft.models.load import load_tokenizer
from zoft.models.outline import load_config
from zoft.models.quiet import first_line
from zoft.recipe.defaults import with_defaults
from zoft.recipe.load import load_recipe
from zoft.recipe.schema import Recipe
from zoft.residency import budgets, choose
from zoft.shape import Shape, shape_of

UNLIMITED = 2**62  # bytes of a device that is not here and has no budget


@dataclass(frozen=True, slots=True)
class Streaming:
    """Of blocks that wait elsewhere: bytes a second, bytes that a step moves, the tokens of a pass from
    which on computing takes longer than fetching, and how many times the batch's that is."""

    residency: Residency
    bandwidth: float
    moved: float
    hiding_tokens: float
    free_factor: float


@dataclass(frozen=True, slots=True)
class Times:
    """Seconds of a step and of the whole run (without evaluations), estimated."""

    step: float
    run: float
    streaming: Streaming | None = None


@dataclass(frozen=True, slots=True)
class Alternative:
    """The same recipe with other settings: its footprint, and whether that is within the budgets."""

    overrides: str
    footprint: Footprint
    fits: bool


@dataclass(frozen=True, slots=True)
class Plan:
    """All that `zoft plan` says. `footprint` is the chosen one, or of what was asked for if nothing
    fits, which `problem` says. Budgets are in bytes; None: none is known."""

    recipe: Recipe
    shape: Shape
    device_budget: int | None
    host_budget: int | None
    footprint: Footprint
    why: str
    problem: str | None
    others: tuple[Footprint, ...]
    times: Times | None
    untimed: str | None
    diffusion: Diffusion | None
    alternatives: tuple[Alternative, ...]
    first_order: FirstOrder | None


def plan(source: str, overrides: Sequence[str] = (), *, as_json: bool = False) -> None:
    """Print the plan of a recipe. Raises OutOfMemory, after the plan, if nothing fits; ZoftError."""
    from zoft.plan_tables import show

    made = make_plan(source, overrides)
    if as_json:
        print(json.dumps(in_json(made), indent=2))
    else:
        show(made)
    if made.problem:
        raise OutOfMemory(made.problem)


def make_plan(source: str, overrides: Sequence[str] = ()) -> Plan:
    """Everything about one recipe, in some seconds. Raises ZoftError, but not for want of memory."""

    def variant(*more: str) -> Recipe:
        return resolved(load_recipe(source, [*overrides, *more]))

    recipe = variant()
    sets = _examples(recipe)
    shape = shape_of(recipe, sets)
    here = _is_here(recipe)
    limits = budgets(recipe) if here else _said(recipe)
    problem = None
    try:
        choice = choose(recipe, shape, *limits)
        chosen, why = choice.footprint, choice.why
    except OutOfMemory as error:
        chosen, why, problem = _smallest(recipe, shape), "nothing fits", str(error)
    times, untimed = _times(recipe, shape, chosen, limits[0], here=here)
    return Plan(
        recipe=recipe,
        shape=shape,
        device_budget=None if limits[0] == UNLIMITED else limits[0],
        host_budget=None if limits[1] in (0, UNLIMITED) else limits[1],
        footprint=chosen,
        why=why,
        problem=problem,
        others=tuple(footprint(recipe, shape, place) for place in _places(recipe, shape)),
        times=times,
        untimed=untimed,
        diffusion=diffusion(recipe, _weight_rms(recipe)),
        alternatives=tuple(alternatives(recipe, shape, sets, chosen, limits, variant)),
        first_order=first_order(recipe, shape),
    )


def in_json(made: Plan) -> dict[str, Any]:
    """The plan as numbers and text; bytes and seconds."""

    def memory(found: Footprint) -> dict[str, Any]:
        return {**asdict(found), "device": found.device, "host": found.host, "disk": found.disk}

    return {
        "recipe": made.recipe.model_dump(mode="json"),
        "budgets": {"device": made.device_budget, "host": made.host_budget},
        "data_known": made.shape.known,
        "chosen": memory(made.footprint),
        "why": made.why,
        "problem": made.problem,
        "residencies": [memory(found) for found in made.others],
        "estimated_seconds": asdict(made.times) if made.times else None,
        "untimed": made.untimed,
        "diffusion": asdict(made.diffusion) if made.diffusion else None,
        "alternatives": [
            {
                "overrides": x.overrides,
                "fits": x.fits,
                "device": x.footprint.device,
                "host": x.footprint.host,
                "disk": x.footprint.disk,
            }
            for x in made.alternatives
        ],
        "first_order": asdict(made.first_order) if made.first_order else None,
    }


def resolved(recipe: Recipe) -> Recipe:
    """As a run would resolve it; a GPU that is not here is planned for all the same."""
    filled = with_defaults(recipe)
    try:
        return resolve(filled)
    except EnvironmentProblem:
        there = filled.device if ":" in filled.device else "cuda:0"
        model = filled.model
        if model.compute_dtype == "auto":
            model = model.model_copy(update={"compute_dtype": "bfloat16"})
        known = resolve(filled.model_copy(update={"device": "cpu", "model": model}))
        return known.model_copy(update={"device": there})


# -- what is looked at ------------------------------------------------------------------------------


def _is_here(recipe: Recipe) -> bool:
    number = int(recipe.device.partition(":")[2] or 0)
    return recipe.device == "cpu" or number < torch.cuda.device_count()


def _said(recipe: Recipe) -> tuple[int, int]:
    """The recipe's budgets alone, for a device that is not here."""
    memory = recipe.memory
    device, host = (
        UNLIMITED if size == "auto" else int(size)
        for size in (memory.device_budget, memory.host_budget)
    )
    return device, host


def _examples(recipe: Recipe) -> Mapping[str, Sequence[Example]] | None:
    """The data as a run would read it, or None where data or tokenizer are not there."""
    data = recipe.data
    sources = {"train": data.train, "eval": data.eval, "test": data.test}
    try:
        where = local_folder(recipe.model.name) or recipe.model.name
        tokenizer = load_tokenizer(where, recipe.model)
        return {
            name: encode(
                load_rows(source), data, tokenizer, choice=recipe.objective.name == "choice"
            ).examples
            for name, source in sources.items()
            if source is not None
        }
    except (ZoftError, OSError):
        return None


def _weight_rms(recipe: Recipe) -> float:
    """What the config initialises with; trained weights stay of that order."""
    text: Any = load_config(recipe.model).get_text_config(decoder=True)
    names = ("initializer_range", "init_std")
    return float(next((value for name in names if (value := getattr(text, name, None))), 0.02))


def _places(recipe: Recipe, shape: Shape) -> list[Residency]:
    if not shape.blocks:
        return ["device"]
    return ["device", "disk"] if recipe.device == "cpu" else ["device", "host", "disk"]


def _smallest(recipe: Recipe, shape: Shape) -> Footprint:
    wanted = recipe.model.residency
    return footprint(recipe, shape, _places(recipe, shape)[-1] if wanted == "auto" else wanted)


# -- seconds ----------------------------------------------------------------------------------------


def _times(
    recipe: Recipe, shape: Shape, chosen: Footprint, free: int, *, here: bool
) -> tuple[Times | None, str | None]:
    """Estimated seconds, or why there are none."""
    if not here:
        return None, f"{recipe.device} is not here"
    try:
        seconds = calibrate(recipe, shape, free)
    except MemoryError as error:
        return None, f"no room for a slice: {error}"
    except Exception as error:  # what a model raises that cannot be cut
        return None, f"a slice of the model does not run: {first_line(error)}"
    computed = seconds.step(shape.blocks)
    steps = recipe.train.steps
    if len(chosen.resident) == shape.blocks:
        return Times(computed, computed * steps), None
    speed = bandwidth(recipe, chosen.residency)
    if speed is None:
        return None, f"nothing to read from to see how fast the {chosen.residency} is"
    streaming = stream(recipe, shape, chosen, seconds, speed)
    step = max(computed, streaming.moved / speed)
    return Times(step, step * steps, streaming), None


def stream(
    recipe: Recipe, shape: Shape, chosen: Footprint, seconds: Seconds, speed: float
) -> Streaming:
    """Fetching beside computing: every pass fetches each streamed block once, a step writes it back."""
    number = shape.blocks - len(chosen.resident)
    arena = next(x.device for x in chosen.items if x.name.startswith("slots")) / chosen.slots
    tuned = any(w.tuned and not w.adapter for w in shape.weights)
    moved = number * arena * (passes(recipe) + (1 if tuned else 0))
    train = recipe.train
    assert isinstance(train.micro_batch_size, int)
    tokens = train.micro_batch_size * shape.train.rows * shape.train.typical
    block = seconds.block / passes(recipe)  # of one pass
    # Blocks that stay compute while others are fetched.
    fetch = arena / speed * number / shape.blocks
    hiding = tokens * fetch / block if block > 0 else math.inf
    return Streaming(chosen.residency, speed, moved, hiding, hiding / tokens)


# -- other settings ---------------------------------------------------------------------------------


def alternatives(
    recipe: Recipe,
    shape: Shape,
    sets: Mapping[str, Sequence[Example]] | None,
    chosen: Footprint,
    limits: tuple[int, int],
    variant: Callable[..., Recipe],
) -> list[Alternative]:
    """Other settings, each with the memory it takes where it fits best; those that change nothing or
    that the recipe does not allow are left out."""
    found = []
    for overrides in _ideas(recipe, shape):
        with suppress(RecipeError, EnvironmentProblem):
            other = variant(*overrides)
            changed = _shape_of(other, recipe, shape, sets)
            try:
                taken, fits = choose(other, changed, *limits).footprint, True
            except OutOfMemory:
                taken, fits = _smallest(other, changed), False
            if taken != chosen:
                found.append(Alternative(" ".join(overrides), taken, fits))
    return found


def _ideas(recipe: Recipe, shape: Shape) -> list[tuple[str, ...]]:
    train, settings, model = recipe.train, recipe.optimizer, recipe.model
    size = train.micro_batch_size
    assert isinstance(size, int)
    full = recipe.tune.method == "full"
    ideas: list[tuple[str, ...]] = []
    if full:
        ideas.append(("tune.method=lora",))
    if full and settings.moments == "full":
        ideas.append(("optimizer.moments=scalar",))
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
    ideas += [(f"model.residency={place}",) for place in _places(recipe, shape)]
    return ideas


def _shape_of(
    other: Recipe, recipe: Recipe, shape: Shape, sets: Mapping[str, Sequence[Example]] | None
) -> Shape:
    """The shape of a variant; made anew only where the model's own is another."""
    if (other.tune, other.model.compute_dtype) != (recipe.tune, recipe.model.compute_dtype):
        shape = shape_of(other, sets)
    if other.data.max_length < shape.train.longest:
        train = _shortened(shape.train, other.data.max_length)
        longest = shape.evaluation and _shortened(shape.evaluation, other.data.max_length)
        shape = replace(shape, train=train, evaluation=longest)
    return shape


def _shortened(texts: Any, length: int) -> Any:
    return replace(texts, longest=min(texts.longest, length), scored=min(texts.scored, length))
