"""The structures by their names in a recipe (optimizer.structure)."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from torch import Tensor

from zoft.engine.probe.directions import Direction, Directions, Structure
from zoft.engine.probe.structures.dense import Dense
from zoft.engine.probe.structures.rank1 import Rank1
from zoft.recipe.sections.optimizers.rule import OptimizerSection
from zoft.system.philox import LAYOUT, LAYOUT_OF_EXPERTS

DENSE = Dense()
STRUCTURES: Mapping[str, Structure] = {"dense": DENSE, "rank1": Rank1()}


def directions_of(settings: OptimizerSection, seed: int) -> Directions:
    """The directions of a run; its recipe has no `auto` left."""
    return Directions(seed, settings.distribution == "gaussian", STRUCTURES[settings.structure])


def structure_of(parameter: Tensor, structure: Structure) -> Structure:
    """`structure` where it covers the parameter, else dense."""
    return structure if structure.covers(parameter.shape) else DENSE


def layout_of(structure: str, shapes: Iterable[Sequence[int]]) -> int:
    """The layout of directions (system/philox.py) of a run that tunes parameters of these shapes."""
    if structure != "rank1":
        return LAYOUT
    experts = any(len(shape) == 3 and STRUCTURES[structure].covers(shape) for shape in shapes)
    return LAYOUT_OF_EXPERTS if experts else LAYOUT


def values_of(z: Direction, weight: Tensor, param: int) -> Tensor:
    """z of the whole parameter as float32, for tests and diagnostics."""
    return structure_of(weight, z.directions.structure).values(z, weight, param)
