"""Memory: how much was used, and what to do when there is none left."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

from zoft.data.examples import Example
from zoft.errors import OutOfMemory, ZoftError, lacks_memory
from zoft.planning.alternatives import Variant, alternatives
from zoft.planning.memory.footprint import footprint
from zoft.planning.placement import budgets
from zoft.planning.workload import shape_of
from zoft.recipe.resolved import Resolved
from zoft.system import accelerator
from zoft.system.host_memory import free_host_bytes, gib, resident_bytes


@dataclass
class Explained:
    """What `memory_explained` can know of a run: how its recipe would resolve with more overrides, and
    its examples, once they are read."""

    recipe: Resolved
    variant: Variant | None
    sets: dict[str, Sequence[Example]] | None = None


@contextmanager
def memory_explained(recipe: Resolved, variant: Variant | None = None) -> Iterator[Explained]:
    """Turn the allocators' errors into one line: what was asked for, what was free, what would fit.

    Without `variant` nothing is computed, and the line names what usually helps.
    """
    explained = Explained(recipe, variant)
    try:
        yield explained
    except (MemoryError, RuntimeError) as error:  # torch's own is a RuntimeError
        if not lacks_memory(error):
            raise
        wanted, free = requested_bytes(str(error)), free_bytes(recipe.device)
        asked = f"{gib(wanted)} more were asked for" if wanted else "more was asked for"
        message = f"out of memory: {asked}, {gib(free)} are free"
        raise OutOfMemory(f"{message}; {_ways(explained, wanted - free)}") from error


def requested_bytes(text: str) -> int:
    """What an allocator says it was asked for; 0 if it does not."""
    found = re.search(r"tried to allocate (\d+(?:\.\d+)?) ?([KMG]i)?B?", text, re.IGNORECASE)
    if not found:
        return 0
    unit = {None: 1, "ki": 2**10, "mi": 2**20, "gi": 2**30}[found[2] and found[2].lower()]
    return int(float(found[1]) * unit)


def free_bytes(device: str) -> int:
    """What is left for another allocation on the device."""
    if device == "cpu":
        return free_host_bytes() - resident_bytes()
    return accelerator.memory_bytes(device)[0]


def _ways(explained: Explained, short: int) -> str:
    """What would fit, by the footprint: less than now by what was lacking, and within the budgets."""
    recipe = explained.recipe
    if explained.variant is None:
        return "try " + ", ".join(_usual(recipe))
    try:
        shape = shape_of(recipe, explained.sets)
        now, (device, host) = footprint(recipe, shape), budgets(recipe)
        limits = min(device, now.device - max(0, short)), host
        found = alternatives(recipe, shape, explained.sets, now, limits, explained.variant)
    except (ZoftError, RuntimeError, MemoryError):  # whatever it is, it must not hide the first
        return "try " + ", ".join(_usual(recipe))
    fitting = [f"{x.overrides} ({gib(x.footprint.device)})" for x in found if x.fits]
    if not fitting:
        return f"no single change that zoft knows of makes it fit; try {', '.join(_usual(recipe))}"
    return f"would fit: {', '.join(fitting)}"


def _usual(recipe: Resolved) -> list[str]:
    ways = [
        f"train.micro_batch_size={max(1, recipe.train.micro_batch_size // 2)}",
        f"eval.batch_size={max(1, recipe.eval.batch_size // 2)}",
    ]
    return [*ways, "tune.method=lora"] if recipe.tune.method == "full" else ways
