"""R-AdaZO (Shu, Zhang, He, Dai: "Refining Adaptive Zeroth-Order Optimization", ICML 2025,
arXiv 2502.01014, algorithm 2).

    m_t = beta1 m_{t-1} + (1 - beta1) g_t
    v_t = beta2 v_{t-1} + (1 - beta2) m_t**2              the refinement: m_t, not g_t
    theta_t = theta_{t-1} - lr m_t / (sqrt(v_t / (1 - beta2**t)) + eps)

The paper corrects no bias; then the first step is 1 / sqrt(1 - beta2) times as long as the later ones
(`bias_correction: none`). Correcting v alone keeps the RMS of an update near lr from the first step on
(folded, see below: near lr times the factor).

Three ways to hold the moments:

    full    m and v stored, 8 bytes per weight
    window  each element's m and v recomputed from the scalars of the last W steps
    scalar  m from the last W steps, one v for all weights: with signs z, mean(m**2) over the weights
            follows from the scalars alone, s_t = beta1**2 s_{t-1} + (1 - beta1)**2 sum_k c_k**2 / K**2

With `scalar`, momentum is but a factor of the rate, so `fold_momentum` applies the rule with beta1 = 0
at lr * sqrt((1 + beta1) / (1 - beta1)): one direction per sweep instead of W. Against the untruncated
m, on a quadratic of 2,000 weights, the loss differs by at most 0.4 % at lr <= 3e-3 and 1 % at 1e-2.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal

from zoft.engine.kernels.numerics.exact_sum import Adam, DirectionSum, Rounding
from zoft.engine.optimizers.measurement import Measurement
from zoft.engine.optimizers.update import DirectionUpdate, Weights
from zoft.engine.probe.directions import Directions

MOMENTS = ("exp_avg", "exp_avg_sq")  # m and v by torch.optim's names, where they are stored


@dataclass(frozen=True, slots=True)
class Rule:
    """The constants of a run (recipe section `optimizer`)."""

    betas: tuple[float, float]
    eps: float
    bias_correction: Literal["v", "none", "adam"]
    moments: Literal["full", "window", "scalar"]
    window: int
    fold_momentum: bool
    weight_decay: float


@dataclass(frozen=True, slots=True)
class Scalars:
    """What follows from the journal's scalars: t updates so far, s_t, V_t, 1 - beta1**t, 1 - beta2**t.

    The powers are running products: `pow` is not the same on every machine.
    """

    t: int = 0
    s: float = 0.0
    V: float = 0.0
    beta1_power: float = 1.0
    beta2_power: float = 1.0


def next_scalars(old: Scalars, grads: Sequence[float], betas: tuple[float, float]) -> Scalars:
    """s_t and V_t after one measurement (METHODS section 3)."""
    beta1, beta2 = betas
    K = len(grads)
    # Mean of g_t**2 over the weights. fsum: what sum does to floats is not the same in every Python.
    g_square = math.fsum(c * c for c in grads) / (K * K)
    s = beta1 * beta1 * old.s + (1 - beta1) * (1 - beta1) * g_square
    V = beta2 * old.V + (1 - beta2) * s
    return Scalars(old.t + 1, s, V, old.beta1_power * beta1, old.beta2_power * beta2)


def corrections(now: Scalars, kind: Literal["v", "none", "adam"]) -> tuple[float, float]:
    """(factor of m, divisor of v)."""
    return (
        1 / (1 - now.beta1_power) if kind == "adam" else 1.0,
        1.0 if kind == "none" else 1 - now.beta2_power,
    )


def folded_lr(lr: float, beta1: float) -> float:
    """The rate at which updates without momentum go as far as those with it.

    mean(m**2) is (1 - beta1) / (1 + beta1) of mean(g**2), and g's shares in all later m add up to g.
    """
    return lr * math.sqrt((1 + beta1) / (1 - beta1))


def momentum_shares(length: int, beta1: float) -> list[float]:
    """The share of each of the last `length` g in m_t, oldest first: (1 - beta1) beta1**age."""
    shares = [1 - beta1]
    for _ in range(length - 1):
        shares.append(shares[-1] * beta1)
    return shares[::-1]


class RAdaZO:
    """Applies the rule above to the tuned weights."""

    def __init__(self, weights: Weights, directions: Directions, rule: Rule) -> None:
        self.weights, self.directions, self.rule = weights, directions, rule
        self.scalars = Scalars()
        self.folds = rule.moments == "scalar" and rule.fold_momentum
        self.betas = (0.0, rule.betas[1]) if self.folds else rule.betas
        # The scalars of the last steps, oldest first: (step, projected gradients).
        length = 1 if self.folds or rule.moments == "full" else rule.window
        self.past: deque[tuple[int, tuple[float, ...]]] = deque(maxlen=length)
        if rule.moments == "full":
            weights.keep(*MOMENTS)

    def update(self, measurement: Measurement, lr: float) -> None:
        """Move the weights by one finite measurement."""
        grads = measurement.projected_grad
        self.scalars = next_scalars(self.scalars, grads, self.betas)
        self.past.append((measurement.step, grads))
        adam: Adam | None
        match self.rule.moments:
            case "scalar":
                sums, adam = [self._scalar_update(lr)], None
            case "full":
                sums, adam = [self._gradient(*self.past[-1])], self._adam(lr, self.scalars)
            case "window":
                sums = [self._gradient(*entry) for entry in self.past]
                adam = self._adam(lr, self._scalars_of_window())
        shrink = lr * self.rule.weight_decay
        rounding = Rounding(self.directions.seed, measurement.step)
        self.weights.apply(DirectionUpdate(self.directions, sums, shrink, rounding, adam))

    def _scalar_update(self, lr: float) -> DirectionSum:
        """The update itself: with one v for all weights it is a sum of directions."""
        scale, divisor = corrections(self.scalars, self.rule.bias_correction)
        if self.folds:
            lr = folded_lr(lr, self.rule.betas[0])
        length = lr * scale / (math.sqrt(self.scalars.V / divisor) + self.rule.eps)
        shares = momentum_shares(len(self.past), self.betas[0])
        addresses, factors = [], []
        for share, (step, grads) in zip(shares, self.past, strict=True):
            for k, c in enumerate(grads):
                addresses.append((step, k))
                factors.append(-length * share * c / len(grads))
        return self.directions.sum_of(addresses, factors)

    def _scalars_of_window(self) -> Scalars:
        """The scalars of moments that are recomputed from the window alone."""
        # The moments start from zero at the window's first step, and are corrected for that.
        seen = Scalars()
        for _, grads in self.past:
            seen = next_scalars(seen, grads, self.betas)
        # Not m: dividing it by 1 - beta1**W as well would lengthen every step.
        return replace(seen, beta1_power=self.scalars.beta1_power)

    def _gradient(self, step: int, grads: tuple[float, ...]) -> DirectionSum:
        """g_t = (1/K) sum_k c_k z_k."""
        addresses = [(step, k) for k in range(len(grads))]
        return self.directions.sum_of(addresses, [c / len(grads) for c in grads])

    def _adam(self, lr: float, now: Scalars) -> Adam:
        scale, divisor = corrections(now, self.rule.bias_correction)
        beta1, beta2 = self.betas
        return Adam(beta1, beta2, lr * scale, divisor, self.rule.eps)

    def state_dict(self) -> dict[str, Any]:
        """Numbers for trainer.json; stored moments are with the weights."""
        past = [[step, list(grads)] for step, grads in self.past]
        return {**asdict(self.scalars), "past": past}

    def load_state_dict(self, numbers: dict[str, Any]) -> None:
        """The inverse of `state_dict`. Raises KeyError if the state is of another rule."""
        numbers = dict(numbers)
        self.past.clear()
        self.past.extend((step, tuple(grads)) for step, grads in numbers.pop("past"))
        self.scalars = Scalars(**numbers)
