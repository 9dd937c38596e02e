"""Directions of every kind that a recipe can name."""

from __future__ import annotations

from typing import Literal

from zoft.engine.probe.directions import Direction, Directions
from zoft.engine.probe.structures.table import STRUCTURES

Kind = Literal["signs", "gaussian", "rank1"]


def directions(seed: int, kind: Kind = "signs") -> Directions:
    structure = "rank1" if kind == "rank1" else "dense"
    return Directions(seed, kind == "gaussian", STRUCTURES[structure])


def direction(seed: int, step: int, k: int, kind: Kind = "signs") -> Direction:
    return directions(seed, kind).at(step, k)
