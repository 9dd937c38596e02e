"""MeZO: zeroth-order SGD (Malladi et al., NeurIPS 2023, arXiv 2305.17333, algorithm 1)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from zoft.engine.kernels.numerics.exact_sum import Rounding
from zoft.engine.optimizers.measurement import Measurement
from zoft.engine.optimizers.update import DirectionUpdate, Weights
from zoft.engine.probe.directions import Directions


def coefficients(projected_grad: Sequence[float], lr: float) -> list[float]:
    """theta <- theta - lr * (1/K) sum_k c_k z_k: the factor of each z_k."""
    return [-lr * c / len(projected_grad) for c in projected_grad]


class MeZO:
    """No state at all: an update is its measurement and its rate."""

    def __init__(self, weights: Weights, directions: Directions, *, weight_decay: float) -> None:
        self.weights, self.directions, self.weight_decay = weights, directions, weight_decay

    def update(self, measurement: Measurement, lr: float) -> None:
        """Move the weights by one finite measurement."""
        grads = measurement.projected_grad
        addresses = [(measurement.step, k) for k in range(len(grads))]
        total = self.directions.sum_of(addresses, coefficients(grads, lr))
        rounding = Rounding(self.directions.seed, measurement.step)
        shrink = lr * self.weight_decay
        self.weights.apply(DirectionUpdate(self.directions, [total], shrink, rounding))

    def state_dict(self) -> dict[str, Any]:
        """Numbers for trainer.json."""
        return {}

    def load_state_dict(self, numbers: dict[str, Any]) -> None:
        del numbers
