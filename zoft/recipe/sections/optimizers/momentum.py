"""SGD with momentum (Polyak, 1964) on the zeroth-order estimate.

    m_t = beta m_{t-1} + g_t
    theta_t = theta_{t-1} - lr m_t

The shares of a g in all later m add up to 1 / (1 - beta), so momentum can be folded into the rate: plain
SGD at lr / (1 - beta) goes as far along every g, at once, and keeps nothing.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, ClassVar, Literal

from pydantic import Field

from zoft.recipe.sections.base import Auto, Decay
from zoft.recipe.sections.optimizers.rule import (
    Directions,
    OptimizerSection,
    Rate,
    Weight,
    gradient,
)

BUFFER = "momentum_buffer"  # torch.optim.SGD's name


class MomentumKeys(Rate):
    """The keys of this rule alone."""

    momentum: Decay = Field(0.9, description="momentum: decay of the sum of past gradients (beta).")
    fold: bool | Auto = Field(
        "auto",
        description="momentum: fold it into the rate instead of keeping a float32 sum of past "
        "gradients for every tuned weight. auto: true for full tuning.",
    )


class Momentum(OptimizerSection, MomentumKeys):
    """SGD with momentum."""

    TITLE = "zeroth-order SGD with momentum (MeZO's estimate)"
    CITATION = "2305.17333"
    # MeZO's rates times 1 - 0.9: as far along every gradient.
    LEARNING_RATES: ClassVar = {
        "full": 1e-7,
        "lora": 1e-5,
        "ia3": 5e-4,
        "prefix": 1e-3,
        "prompt": 1e-4,
        "bias": 1e-5,
        "norm": 1e-5,
    }
    PROPORTIONAL = True
    WITHOUT_STATE = "optimizer.fold=true"

    name: Literal["momentum"] = Field(
        "momentum", description="momentum: zeroth-order SGD with momentum."
    )

    def rule(self) -> MomentumRule:
        return MomentumRule(self.momentum, folds=not self.state())

    def state(self) -> tuple[str, ...]:
        return () if self.fold is True else (BUFFER,)

    def own_choices(self, method: str) -> dict[str, Any]:
        return {"fold": method == "full" if self.fold == "auto" else self.fold}

    def step_rms(self, gradient_rms: float) -> float:
        if self.state():
            return gradient_rms / math.sqrt(1 - self.momentum**2)
        return self.walk_rms(gradient_rms)

    def walk_rms(self, gradient_rms: float) -> float:
        return gradient_rms / (1 - self.momentum)


class MomentumRule:
    """The rule above. Its only state is the weights' buffers."""

    def __init__(self, beta: float, *, folds: bool) -> None:
        self.beta, self.folds = beta, folds

    def update(
        self, step: int, projected_grad: Sequence[float], lr: float, directions: Directions
    ) -> Callable[[Weight], None]:
        if self.folds:
            total = gradient(step, projected_grad, directions, -lr / (1 - self.beta))
            return lambda weight: weight.add(total)
        newest = gradient(step, projected_grad, directions)

        def move(weight: Weight) -> None:
            weight.accumulate(BUFFER, newest, self.beta)
            weight.add_state(BUFFER, -lr)

        return move

    def state_dict(self) -> dict[str, Any]:
        return {}

    def load_state_dict(self, numbers: dict[str, Any]) -> None:
        del numbers
