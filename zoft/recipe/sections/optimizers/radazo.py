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
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field

from zoft.recipe.sections.base import Auto, Counted, Decay
from zoft.recipe.sections.optimizers.rule import (
    AdamConstants,
    Directions,
    DirectionSum,
    OptimizerSection,
    Rate,
    Scope,
    Weight,
    gradient,
)

WINDOW, SCALAR_WINDOW = 44, 22  # agree with the untruncated moments to a cosine of .996 and .995
EXAMPLE_LEARNING_RATE = 2e-4  # full tuning bears a longer step where every example has a direction
Moments = Literal["full", "window", "scalar"]


class RAdaZOKeys(Rate):
    """The keys of this rule alone."""

    betas: Annotated[tuple[Decay, Decay], Field(strict=False)] = Field(
        (0.9, 0.99), description="r-adazo: decay of the first and the second moment."
    )
    eps: Annotated[float, Field(ge=1e-30)] = Field(
        1e-8, description="r-adazo: keeps the denominator from zero (the paper's zeta)."
    )
    bias_correction: Literal["v", "none", "adam"] = Field(
        "v",
        description="r-adazo: correct the second moment for its start at zero; none: the paper; "
        "adam: correct both moments.",
    )
    moments: Literal["auto", "full", "window", "scalar"] = Field(
        "auto",
        description="r-adazo. full: m and v stored, 8 bytes per tuned weight; window: recomputed "
        "from the last steps; scalar: one v for all. auto: full for adapters, scalar for full tuning.",
    )
    window: Counted | Auto = Field(
        "auto",
        description="r-adazo: past steps that moments window (auto: 44) and unfolded scalar "
        "(auto: 22) look back.",
    )
    fold_momentum: bool = Field(
        True,
        description="r-adazo, scalar: fold the momentum into the rate; a sweep adds up one step's "
        "directions, and no window of them.",
    )


class RAdaZO(OptimizerSection, RAdaZOKeys):
    """R-AdaZO's section of a recipe."""

    TITLE = "R-AdaZO"
    CITATION = "2502.01014"
    # lora and prefix: the published grids. full, ia3, prompt and norm are ours, measured
    # (docs/tuning.md); bias is taken over from norm.
    LEARNING_RATES: ClassVar = {
        "full": 1e-4,
        "lora": 5e-5,
        "ia3": 5e-3,
        "prefix": 1e-2,
        "prompt": 5e-3,
        "bias": 1e-3,
        "norm": 1e-3,
    }
    PER_EXAMPLE = True
    WITHOUT_STATE = "optimizer.moments=scalar"

    name: Literal["r-adazo"] = Field(
        "r-adazo", description="r-adazo: moments of the estimated gradient (arXiv 2502.01014)."
    )

    def rule(self) -> RAdaZORule:
        moments = self.moments_for("lora")  # a resolved section has no auto
        return RAdaZORule(
            betas=self.betas,
            eps=self.eps,
            bias_correction=self.bias_correction,
            moments=moments,
            window=self.window_for(moments),
            fold_momentum=self.fold_momentum,
        )

    def state(self) -> tuple[str, ...]:
        return ("exp_avg", "exp_avg_sq") if self.moments == "full" else ()

    def moments_for(self, method: str) -> Moments:
        """`moments` with `auto` replaced, for a tune.method."""
        if self.moments == "auto":
            return "scalar" if method == "full" else "full"
        return self.moments

    def window_for(self, moments: Moments) -> int:
        """`window` with `auto` replaced."""
        if self.window == "auto":
            return WINDOW if moments == "window" else SCALAR_WINDOW
        return self.window

    def own_choices(self, method: str) -> dict[str, Any]:
        moments = self.moments_for(method)
        return {"moments": moments, "window": self.window_for(moments)}

    def default_lr(self, learns: str, scope: Scope) -> float:
        if (learns, scope) == ("full", "example"):
            return EXAMPLE_LEARNING_RATE
        return super().default_lr(learns, scope)

    @classmethod
    def summed_steps(cls, values: Mapping[str, Any]) -> int:
        """`auto` moments count as scalar."""
        folds = values.get("fold_momentum", True)
        if values.get("moments", "auto") not in ("auto", "scalar") or folds:
            return 1
        window = values.get("window", "auto")
        return SCALAR_WINDOW if window == "auto" else int(window)

    def step_rms(self, gradient_rms: float) -> float:
        del gradient_rms
        folds = self.moments == "scalar" and self.fold_momentum
        return folded_lr(1.0, self.betas[0]) if folds else 1.0

    def walk_rms(self, gradient_rms: float) -> float:
        """Steps are lr long and overlap, or longer by the same factor where momentum is folded."""
        del gradient_rms
        return folded_lr(1.0, self.betas[0])


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
    """s_t and V_t after one measurement (docs/methods.md#scalar-moments)."""
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


class RAdaZORule:
    """The rule above, for a run's constants."""

    def __init__(
        self,
        *,
        betas: tuple[float, float] = (0.9, 0.99),
        eps: float = 1e-8,
        bias_correction: Literal["v", "none", "adam"] = "v",
        moments: Moments = "full",
        window: int = WINDOW,
        fold_momentum: bool = True,
    ) -> None:
        self.eps, self.bias_correction, self.moments = eps, bias_correction, moments
        self.scalars = Scalars()
        # Folded momentum is the rule with beta1 = 0 at a longer rate.
        self.folded = betas[0] if moments == "scalar" and fold_momentum else 0.0
        self.betas = (0.0, betas[1]) if self.folded else betas
        # The scalars of the last steps, oldest first: (step, projected gradients).
        folds = moments == "scalar" and fold_momentum
        length = 1 if folds or moments == "full" else window
        self.past: deque[tuple[int, tuple[float, ...]]] = deque(maxlen=length)

    def update(
        self, step: int, projected_grad: Sequence[float], lr: float, directions: Directions
    ) -> Callable[[Weight], None]:
        self.scalars = next_scalars(self.scalars, projected_grad, self.betas)
        self.past.append((step, tuple(projected_grad)))
        match self.moments:
            case "scalar":
                total = self._scalar_sum(lr, directions)
                return lambda weight: weight.add(total)
            case "full":
                newest = gradient(step, projected_grad, directions)
                stored = self._constants(lr, self.scalars)
                return lambda weight: weight.adam(newest, stored)
            case "window":
                window = [gradient(*entry, directions) for entry in self.past]
                recomputed = self._constants(lr, self._window_scalars())
                return lambda weight: weight.adam_window(window, recomputed)

    def _scalar_sum(self, lr: float, directions: Directions) -> DirectionSum:
        scale, divisor = corrections(self.scalars, self.bias_correction)
        lr = folded_lr(lr, self.folded)
        length = lr * scale / (math.sqrt(self.scalars.V / divisor) + self.eps)
        shares = momentum_shares(len(self.past), self.betas[0])
        addresses, factors = [], []
        for share, (step, grads) in zip(shares, self.past, strict=True):
            for k, c in enumerate(grads):
                addresses.append((step, k))
                factors.append(-length * share * c / len(grads))
        return directions.total(addresses, factors)

    def _window_scalars(self) -> Scalars:
        """The moments start from zero at the window's first step, and are corrected for that."""
        seen = Scalars()
        for _, grads in self.past:
            seen = next_scalars(seen, grads, self.betas)
        # Not m: dividing it by 1 - beta1**W as well would lengthen every step.
        return replace(seen, beta1_power=self.scalars.beta1_power)

    def _constants(self, lr: float, now: Scalars) -> AdamConstants:
        scale, divisor = corrections(now, self.bias_correction)
        return AdamConstants(*self.betas, lr * scale, divisor, self.eps)

    def state_dict(self) -> dict[str, Any]:
        past = [[step, list(grads)] for step, grads in self.past]
        return {**asdict(self.scalars), "past": past}

    def load_state_dict(self, numbers: dict[str, Any]) -> None:
        numbers = dict(numbers)
        self.past.clear()
        self.past.extend((step, tuple(grads)) for step, grads in numbers.pop("past"))
        self.scalars = Scalars(**numbers)
