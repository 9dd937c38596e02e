"""`zoft plan`: a recipe's plan as JSON, or as tables of at most 80 columns, plain text when piped."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table

from zoft.errors import OutOfMemory
from zoft.planning.memory.footprint import Footprint, Item
from zoft.planning.plan import Plan, Streaming, make_plan
from zoft.recipe.schema import Recipe
from zoft.system.host_memory import gib

WIDTH = 80


def plan(
    source: str,
    overrides: Sequence[str] = (),
    *,
    as_json: bool = False,
    recipe: Recipe | None = None,
    **found: Any,
) -> None:
    """Print the plan of a recipe, which was read already if `recipe` is given;
    `found` is for `make_plan`.

    Raises OutOfMemory, after the plan, if nothing fits; ZoftError.
    """
    made = make_plan(source, overrides, recipe, **found)
    if as_json:
        print(json.dumps(in_json(made), indent=2))
    else:
        show(made)
    if made.problem:
        raise OutOfMemory(made.problem)


def in_json(made: Plan) -> dict[str, Any]:
    """The plan as numbers and text; bytes and seconds."""

    def memory(found: Footprint) -> dict[str, Any]:
        return {**asdict(found), "device": found.device, "host": found.host, "disk": found.disk}

    return {
        "recipe": made.recipe.model_dump(mode="json"),
        "budgets": {"device": made.device_budget, "host": made.host_budget},
        "data_known": made.shape.known,
        "assumed": made.assumed,
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


def show(made: Plan) -> None:
    """Print all of it."""
    terminal = sys.stdout.isatty()
    console = Console(
        width=None if terminal else WIDTH, highlight=False, markup=False, soft_wrap=not terminal
    )
    for part in (_head, _memory, _places, _time, _rounding, _others, _back_propagation):
        part(made, console)


def _table(*columns: str, title: str) -> Table:
    table = Table(title=title, title_justify="left", title_style="bold", box=box.SIMPLE_HEAD)
    for i, name in enumerate(columns):
        table.add_column(name, justify="right" if i else "left", overflow="fold")
    return table


def _head(made: Plan, console: Console) -> None:
    recipe, train = made.recipe, made.shape.train
    number = sum(w.numel for w in made.shape.weights)
    learn = sum(w.numel for w in made.shape.weights if w.tuned or w.exact)
    exact = sum(w.numel for w in made.shape.weights if w.exact)
    how = f" ({exact:,} by exact gradients)" if exact else ""
    console.print(f"{recipe.model.name} on {recipe.device}")
    console.print(
        f"{number:,} weights, {learn:,} of them tuned{how}, in {recipe.model.dtype}; computed in "
        f"{recipe.model.compute_dtype}"
    )
    length = f"up to {train.longest} tokens"
    console.print(
        f"batch {recipe.train.batch_size}, {recipe.train.micro_batch_size} at a time, {length}"
    )
    for name, why in made.assumed.items():
        console.print(f"assumed: data.{name} as long as data.max_length allows; {why}")
    limits = [
        f"{gib(size)} of the {name}"
        for name, size in (("device", made.device_budget), ("host", made.host_budget))
        if size is not None
    ]
    console.print(f"budget: {' and '.join(limits) or 'none given, and the device is not here'}")
    console.print(f"residency: {made.footprint.residency}: {made.why}")


def _memory(made: Plan, console: Console) -> None:
    cpu = made.recipe.device == "cpu"
    found = made.footprint
    table = _table(
        "item", *(("memory", "disk") if cpu else ("device", "host", "disk")), title="Memory, MiB"
    )

    def row(item: Item) -> None:
        sizes = (item.device, item.disk) if cpu else (item.device, item.host, item.disk)
        table.add_row(item.name, *(f"{size / 2**20:,.0f}" if size else "" for size in sizes))

    for item in found.items:
        row(item)
    table.add_section()
    for item in found.phases:
        row(Item(f"{item.name} (one at a time)", item.device, item.host))
    table.add_section()
    row(Item("peak", found.device, found.host, found.disk))
    console.print(table)


def _places(made: Plan, console: Console) -> None:
    if len(made.others) < 2:
        return
    cpu = made.recipe.device == "cpu"
    table = _table(
        "all blocks on the",
        "memory" if cpu else "device",
        *(() if cpu else ("host",)),
        "disk",
        title="Residencies, GiB",
    )
    for found in made.others:
        table.add_row(found.residency, *_sizes(found, cpu=cpu))
    console.print(table)


def _sizes(found: Footprint, *, cpu: bool) -> list[str]:
    sizes = (found.device, found.disk) if cpu else (found.device, found.host, found.disk)
    return [f"{size / 2**30:,.2f}" for size in sizes]


def _time(made: Plan, console: Console) -> None:
    if made.times is None:
        console.print(f"Time: not estimated: {made.untimed}.\n")
        return
    steps = made.recipe.train.steps
    console.print(
        f"Time, estimated from a slice of the model: {made.times.step:.3g} s a step, "
        f"{_duration(made.times.run)} for {steps:,} steps (without evaluations)."
    )
    if made.times.streaming:
        console.print(_streaming(made.times.streaming))
    console.print()


def _streaming(found: Streaming) -> str:
    text = (
        f"A step moves {gib(found.moved)} at {found.bandwidth / 1e9:.2f} GB/s from the "
        f"{found.residency}; passes of {found.hiding_tokens:,.0f} tokens or more hide it."
    )
    if found.free_factor > 1:
        text += (
            f" Below that, up to {found.free_factor:.1f} times the directions x rows cost no time: "
            "raise train.batch_size."
        )
    return text


def _rounding(made: Plan, console: Console) -> None:
    found = made.diffusion
    if found is None:
        return
    console.print(
        f"Rounding to {made.recipe.model.dtype}: after all steps the updates moved a weight by "
        f"{found.update:.1e} RMS, stochastic rounding by {found.rounding:.1e} ({found.assumed})."
    )
    if found.rounding > found.update / 3:
        console.print("model.dtype=float32 loses nothing to rounding.")
    console.print()


def _others(made: Plan, console: Console) -> None:
    cpu = made.recipe.device == "cpu"
    table = _table(
        "override",
        "memory" if cpu else "device",
        *(() if cpu else ("host",)),
        "disk",
        "residency",
        "fits",
        title="Instead, GiB",
    )
    for x in made.alternatives:
        sizes = _sizes(x.footprint, cpu=cpu)
        table.add_row(x.overrides, *sizes, x.footprint.residency, "yes" if x.fits else "no")
    console.print(table)


def _back_propagation(made: Plan, console: Console) -> None:
    found, budget = made.first_order, made.device_budget
    if found is None:
        return
    console.print(
        f"Back-propagation would need {gib(found.full)} (AdamW, all weights) or {gib(found.lora)} "
        f"(AdamW, LoRA): {found.assumed}."
    )
    if budget is not None and found.lora <= budget:
        which = "all weights" if found.full <= budget else "LoRA"
        console.print(
            f"That fits for {which}: use it, it needs 10 to 100 times fewer passes to the same loss."
        )


def _duration(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"
