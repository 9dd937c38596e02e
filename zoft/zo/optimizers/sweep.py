"""The tuned weights of a run, and what every update rule needs to know to move them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import nn

from zoft.kernels.dispatch import Kernels, kernels_for
from zoft.kernels.terms import Rounding, Terms


@dataclass(frozen=True, slots=True)
class Tuned:
    """One tuned parameter: its name, its id in the directions' address, whether it decays."""

    name: str
    parameter: nn.Parameter
    param: int
    decays: bool

    @property
    def data(self) -> torch.Tensor:
        return self.parameter.detach()

    @property
    def kernels(self) -> Kernels:
        return kernels_for(self.parameter.device)


def tuned_weights(
    parameters: Mapping[str, nn.Parameter], ids: Mapping[str, int], decaying: set[str]
) -> list[Tuned]:
    return [Tuned(name, p, ids[name], name in decaying) for name, p in parameters.items()]


@dataclass(frozen=True, slots=True)
class Sweep:
    """What is common to every parameter in one update: lr * weight_decay and the rounding key."""

    shrink: float
    rounding: Rounding

    def decay(self, tuned: Tuned) -> float:
        return 1.0 - self.shrink if tuned.decays else 1.0


def add(weights: list[Tuned], terms: Terms, sweep: Sweep) -> None:
    """weight = weight * decay + sum of directions, over every tuned parameter."""
    for tuned in weights:
        tuned.kernels.add_directions(
            tuned.data,
            terms,
            param=tuned.param,
            decay=sweep.decay(tuned),
            rounding=sweep.rounding,
        )
