"""What a step measures, as the journal holds it: numbers alone, so that reading it needs no torch."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Measurement:
    """What one step learnt; every number is a float32 or NaN.

    loss_plus and loss_minus hold the batch's mean loss for each of K directions. projected_grad has
    c_k = (loss_plus_k - loss_minus_k) / (2 * perturbation), or, one-sided,
    (loss_plus_k - loss_minus_k) / perturbation with loss_minus the loss at theta itself; with
    per-example directions K * B of them, k * B + i from the mean loss of example i alone.
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


def rms(values: Sequence[float | None]) -> float:
    """Compute the root mean square; NaN if a value is not finite (None in an event) or there is none."""
    squares = [math.nan if x is None else x * x for x in values]
    return math.sqrt(sum(squares) / len(squares)) if squares else math.nan
