"""Projected gradients from forward passes: what a step measures. No weight is ever written here."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from zoft.zo.directions import Direction
from zoft.zo.probe import View

Loss = Callable[[], float]  # mean loss over the batch, inside the probe that is open


@dataclass(frozen=True, slots=True)
class Measurement:
    """What one step learnt, one entry per direction; every number is a float32 or NaN.

    projected_grad c_k = (loss_plus_k - loss_minus_k) / (2 * perturbation), or, one-sided,
    (loss_plus_k - loss_minus_k) / perturbation with loss_minus the loss at theta itself.
    """

    step: int
    loss_plus: tuple[float, ...]
    loss_minus: tuple[float, ...]
    projected_grad: tuple[float, ...]

    @property
    def finite(self) -> bool:
        return all(math.isfinite(c) for c in self.projected_grad)

    @property
    def loss(self) -> float:
        """The mean over all probes: theta's own loss up to O(perturbation**2)."""
        values = self.loss_plus + self.loss_minus
        return sum(values) / len(values)


@dataclass(frozen=True, slots=True)
class Estimator:
    """Simultaneous perturbation (SPSA) over `directions` directions, on one and the same batch.

    Two-sided: 2K forward passes. One-sided: K + 1. Source: METHODS section 2; Spall 1992.
    """

    view: View
    seed: int
    gaussian: bool
    perturbation: float
    directions: int = 1
    sides: int = 2

    def direction(self, step: int, k: int) -> Direction:
        return Direction(self.seed, step, k, self.gaussian)

    def measure(self, step: int, loss: Loss) -> Measurement:
        """`loss` runs the step's batch forward at whatever weights the open probe shows."""
        plus, minus, grads = [], [], []
        centre = self.loss_at(None, 0.0, loss) if self.sides == 1 else math.nan
        for k in range(self.directions):
            z = self.direction(step, k)
            plus.append(self.loss_at(z, self.perturbation, loss))
            minus.append(centre if self.sides == 1 else self.loss_at(z, -self.perturbation, loss))
            grads.append((plus[-1] - minus[-1]) / (self.sides * self.perturbation))
        return Measurement(step, _float32(plus), _float32(minus), _float32(grads))

    def loss_at(self, direction: Direction | None, scale: float, loss: Loss) -> float:
        """The mean loss, in float64, at theta + scale * z."""
        with self.view.probe(direction, scale):
            return loss()


def _float32(values: list[float]) -> tuple[float, ...]:
    """Rounded to float32, in the shortest decimal form: what the journal holds and updates use."""
    with np.errstate(over="ignore"):
        return tuple(float(str(np.float32(x))) for x in values)
