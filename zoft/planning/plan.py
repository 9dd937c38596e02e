"""What a recipe needs and how long it takes, found out before anything is loaded."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from transformers import PreTrainedTokenizerBase

from zoft.data.encoding import Encoded
from zoft.data.examples import Example
from zoft.data.sets import SETS, Data, prepare
from zoft.data.sources import load_rows
from zoft.engine.offload.operations import Op
from zoft.engine.offload.schedule import Schedule, Transfer
from zoft.engine.offload.simulator import simulate
from zoft.errors import OutOfMemory, ZoftError, first_line
from zoft.models.load import find_tokenizer
from zoft.models.meta import load_config
from zoft.planning.alternatives import Alternative, alternatives, places, smallest
from zoft.planning.backprop import FirstOrder, first_order
from zoft.planning.memory.exact_blocks import with_exact_blocks
from zoft.planning.memory.footprint import Footprint, Residency, footprint
from zoft.planning.placement import budgets, choose
from zoft.planning.resolve import resolve, with_data
from zoft.planning.rounding import Diffusion, diffusion
from zoft.planning.step_time import Seconds, bandwidth, calibrate, passes
from zoft.planning.workload import Sets, Shape, shape_of
from zoft.recipe.load import load_recipe
from zoft.recipe.resolved import Resolved
from zoft.recipe.schema import Recipe
from zoft.recipe.sections.data import listed
from zoft.system.accelerator import count

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
class Plan:
    """All that `zoft plan` says. `footprint` is the chosen one, or of what was asked for if nothing
    fits, which `problem` says. `assumed`: why a set's texts are as long as they may be, by its name.
    Budgets are in bytes; None: none is known."""

    recipe: Resolved
    shape: Shape
    assumed: dict[str, str]
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


def _as_it_is(recipe: Recipe) -> Recipe:
    return recipe


def _of_base(recipe: Recipe) -> PreTrainedTokenizerBase:
    return find_tokenizer(recipe.model)


def make_plan(
    source: str,
    overrides: Sequence[str] = (),
    written: Recipe | None = None,
    *,
    begin: Callable[[Recipe], Recipe] = _as_it_is,
    tokenizer: Callable[[Recipe], PreTrainedTokenizerBase] = _of_base,
) -> Plan:
    """Everything about one recipe (`written`, if it was read already), in some seconds.

    `begin` puts in what its names of runs and adapters stand for, `tokenizer` finds the one that a run
    would use. Raises ZoftError, but not for want of memory.
    """

    def variant(*more: str) -> Resolved:
        return resolve(begin(load_recipe(source, [*overrides, *more])), absent=True)

    recipe = resolve(begin(written), absent=True) if written else variant()
    read = read_data(recipe, tokenizer)
    here = _is_here(recipe)
    limits = budgets(recipe) if here else _said(recipe)
    recipe, shape = with_exact_blocks(read.recipe, read.shape, limits[0])
    problem = None
    try:
        choice = choose(recipe, shape, *limits)
        chosen, why = choice.footprint, choice.why
    except OutOfMemory as error:
        chosen, why, problem = smallest(recipe, shape), "nothing fits", str(error)
    times, untimed = _times(recipe, shape, chosen, limits[0], here=here)
    return Plan(
        recipe=recipe,
        shape=shape,
        assumed=read.problems,
        device_budget=None if limits[0] == UNLIMITED else limits[0],
        host_budget=None if limits[1] in (0, UNLIMITED) else limits[1],
        footprint=chosen,
        why=why,
        problem=problem,
        others=tuple(footprint(recipe, shape, place) for place in places(recipe, shape)),
        times=times,
        untimed=untimed,
        diffusion=diffusion(recipe, _weight_rms(recipe)),
        alternatives=tuple(alternatives(recipe, shape, read.sets, chosen, limits, variant)),
        first_order=first_order(recipe, shape),
    )


# -- what is looked at ------------------------------------------------------------------------------


def _is_here(recipe: Resolved) -> bool:
    kind, _, number = recipe.device.partition(":")
    return kind == "cpu" or int(number) < count(kind)


def _said(recipe: Resolved) -> tuple[int, int]:
    """The recipe's budgets alone, for a device that is not here."""
    memory = recipe.memory
    device, host = (
        UNLIMITED if size == "auto" else int(size)
        for size in (memory.device_budget, memory.host_budget)
    )
    return device, host


@dataclass(frozen=True)
class Read:
    """The recipe with what its rows decide, its sets as a run would read them, the size of their
    tokenizer's vocabulary (0: it is not there), and why the other sets could not be read, by name."""

    recipe: Resolved
    examples: dict[str, Sequence[Example]]
    words: int
    problems: dict[str, str]

    @property
    def shape(self) -> Shape:
        """The model and these texts in numbers."""
        return shape_of(self.recipe, self.sets, self.words)

    @property
    def sets(self) -> Sets:
        """Every set that will be used; None for what could not be read."""
        return {**dict.fromkeys(self.problems), **self.examples}


def read_data(
    recipe: Resolved, tokenizer: Callable[[Recipe], PreTrainedTokenizerBase] = _of_base
) -> Read:
    """What can be read of the recipe's data."""
    names = [name for name in SETS if getattr(recipe.data, name) is not None]
    problems: dict[str, str] = {}
    try:
        found = tokenizer(recipe)
    except (ZoftError, OSError) as error:
        for name in names:
            problems[name] = _counted(recipe, name, f"tokens not counted, {first_line(error)}")
        return Read(recipe, {}, 0, problems)
    sets: dict[str, Encoded] = {}
    for name in names:
        try:
            recipe, read = prepare(recipe, found, names=(name,))
            sets.update(read)
        except (ZoftError, OSError) as error:
            problems[name] = first_line(error)
    data = Data(found, recipe.data.format, sets)
    return Read(with_data(recipe, data), {**data.examples}, len(found), problems)


def _counted(recipe: Resolved, name: str, why: str) -> str:
    """The number of rows without a tokenizer, and why that is all."""
    try:
        number = sum(len(load_rows(x)) for x in listed(getattr(recipe.data, name)))
    except (ZoftError, OSError) as error:
        return first_line(error)
    return f"{number:,} rows; {why}"


def _weight_rms(recipe: Resolved) -> float:
    """What the config initialises with; trained weights stay of that order."""
    text: Any = load_config(recipe.model).get_text_config(decoder=True)
    names = ("initializer_range", "init_std")
    return float(next((value for name in names if (value := getattr(text, name, None))), 0.02))


# -- seconds ----------------------------------------------------------------------------------------


def _times(
    recipe: Resolved, shape: Shape, chosen: Footprint, free: int, *, here: bool
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
    step = streamed_step(recipe, shape, chosen, seconds, speed)
    return Times(step, step * steps, stream(recipe, shape, chosen, seconds, speed)), None


def streamed_step(
    recipe: Resolved, shape: Shape, chosen: Footprint, seconds: Seconds, speed: float
) -> float:
    """Seconds of a step in the long run: the streaming engine's own plan, simulated."""
    streamed = [block for block in range(shape.blocks) if block not in chosen.resident]
    tuned, cpu, each = _tunes_blocks(shape), recipe.device == "cpu", passes(recipe)
    transfer: Transfer = "memory" if chosen.residency == "host" else "file" if cpu else "staged"
    schedule = Schedule(streamed, chosen.slots, transfer, "device" if tuned else None)
    # The bandwidth is that of the slower way; from pinned memory on it goes faster than from a disk.
    slow = ("read", "write") if transfer == "staged" else ("read", "write", "upload", "download")
    fetch = _arena(chosen) / speed
    staying = seconds.block / each, seconds.block_update * len(chosen.resident) * tuned
    outside = seconds.rest + seconds.rest_update + staying[1]

    def takes(op: Op) -> float:
        match op.kind:
            case "enter":
                return outside if op.block < 0 else staying[0]
            case "update":
                return seconds.block_update
        return fetch if op.kind in slow else 0.0

    def finish(steps: int) -> float:
        ops: list[Op] = []
        for _ in range(steps):
            for block in [*range(shape.blocks)] * each:
                if block in chosen.resident:
                    ops.append(Op("compute", "enter", block))
                else:
                    ops += [*schedule.enter(block), *schedule.leave(block)]
            ops.append(Op("compute", "enter", -1))
            ops += schedule.enqueue_update() if tuned else []
        return simulate(ops, takes, inline=cpu).finish

    # Each call goes on where the last one left the slots; what is fetched ahead cancels out.
    finish(1)
    return finish(3) - finish(2)


def stream(
    recipe: Resolved, shape: Shape, chosen: Footprint, seconds: Seconds, speed: float
) -> Streaming:
    """Fetching beside computing: every pass fetches each streamed block once, a step writes it back."""
    number = shape.blocks - len(chosen.resident)
    arena = _arena(chosen)
    moved = number * arena * (passes(recipe) + (1 if _tunes_blocks(shape) else 0))
    train = recipe.train
    tokens = train.micro_batch_size * shape.train.rows * shape.train.typical
    block = seconds.block / passes(recipe)  # of one pass
    # Blocks that stay compute while others are fetched.
    fetch = arena / speed * number / shape.blocks
    hiding = tokens * fetch / block if block > 0 else math.inf
    return Streaming(chosen.residency, speed, moved, hiding, hiding / tokens)


def _arena(chosen: Footprint) -> float:
    """Bytes of a slot."""
    return next(x.device for x in chosen.items if x.name.startswith("slots")) / chosen.slots


def _tunes_blocks(shape: Shape) -> bool:
    return any(w.tuned and not w.adapter for w in shape.weights)
