"""MeZO: zeroth-order SGD (Malladi et al., NeurIPS 2023, arXiv 2305.17333, algorithm 1)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from zoft.engine.kernels.numerics.exact_sum import Rounding, make_terms
from zoft.engine.optimizers.measurement import Measurement
from zoft.engine.optimizers.update import Sweep, Weights, adding


def coefficients(projected_grad: Sequence[float], lr: float) -> list[float]:
    """theta <- theta - lr * (1/K) sum_k c_k z_k: the factor of each z_k."""
    return [-lr * c / len(projected_grad) for c in projected_grad]


class MeZO:
    """No state at all: an update is its measurement and its rate."""

    def __init__(
        self,
        weights: Weights,
        *,
        seed: int,
        gaussian: bool,
        weight_decay: float,
        rank1: bool = False,
    ) -> None:
        self.weights, self.weight_decay = weights, weight_decay
        self.seed, self.gaussian, self.rank1 = seed, gaussian, rank1

    def update(self, measurement: Measurement, lr: float) -> None:
        """Move the weights by one finite measurement."""
        grads = measurement.projected_grad
        addresses = [(measurement.step, k) for k in range(len(grads))]
        factors = coefficients(grads, lr)
        terms = make_terms(self.seed, self.gaussian, addresses, factors, self.rank1)
        sweep = Sweep(lr * self.weight_decay, Rounding(self.seed, measurement.step))
        self.weights.apply(adding(terms, sweep))

    def state_dict(self) -> dict[str, Any]:
        """Numbers for trainer.json."""
        return {}

    def load_state_dict(self, numbers: dict[str, Any]) -> None:
        del numbers
