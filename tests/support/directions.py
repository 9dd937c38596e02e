"""Directions by kind: signs, gaussian (both dense) or rank1."""

from __future__ import annotations

from zoft.engine.probe.directions import Direction, Directions
from zoft.engine.probe.structures.table import STRUCTURES


def directions(seed: int, kind: str = "signs") -> Directions:
    structure = "rank1" if kind == "rank1" else "dense"
    return Directions(seed, kind == "gaussian", STRUCTURES[structure])


def direction(seed: int, step: int, k: int, kind: str = "signs") -> Direction:
    return directions(seed, kind).at(step, k)
