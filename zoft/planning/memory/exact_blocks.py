"""`tune.tail: blocks:auto`: as many of the last blocks as the device has room for."""

from __future__ import annotations

from bisect import bisect_left

from zoft.planning.memory.footprint import footprint
from zoft.planning.workload import Shape, with_tune
from zoft.recipe.resolved import Resolved
from zoft.recipe.sections.tune import AUTO_BLOCKS


def with_exact_blocks(recipe: Resolved, shape: Shape, device_bytes: int) -> tuple[Resolved, Shape]:
    """`recipe` with the number that its `blocks:auto` stands for, and `shape` so: all blocks if these
    fit, else as many as do, and one where not even that does."""
    if recipe.tune.tail != AUTO_BLOCKS:
        return recipe, shape

    def having(number: int) -> tuple[Resolved, Shape]:
        tune = recipe.tune.model_copy(update={"tail": f"blocks:{number}"})
        found = recipe.model_copy(update={"tune": tune})
        return found, with_tune(shape, found)

    def too_large(number: int) -> bool:
        return footprint(*having(number), "device").unchecked.device > device_bytes

    # Without probes all blocks can take less than one block fewer.
    if not too_large(shape.blocks):
        return having(shape.blocks)
    return having(max(1, bisect_left(range(1, shape.blocks), True, key=too_large)))
