"""ZO-AdaMM (Chen et al., NeurIPS 2019, arXiv 1910.06513, algorithm 1): AMSGrad on the zeroth-order
estimate.

    m_t = beta1 m_{t-1} + (1 - beta1) g_t
    v_t = beta2 v_{t-1} + (1 - beta2) g_t**2
    w_t = max(w_{t-1}, v_t)                               element by element
    theta_t = theta_{t-1} - lr m_t / (sqrt(w_t) + eps)

No moment is corrected for its start at zero. The paper also projects theta onto a constraint set;
weights have none. Its v starts at a small number, ours at zero with `eps` beside the root.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field

from zoft.recipe.sections.base import Decay
from zoft.recipe.sections.optimizers.rule import (
    AdamConstants,
    Directions,
    OptimizerSection,
    Rate,
    Weight,
    gradient,
)


class ZOAdaMMKeys(Rate):
    """The keys of this rule; R-AdaZO has them too, with other defaults."""

    betas: Annotated[tuple[Decay, Decay], Field(strict=False)] = Field(
        (0.9, 0.3), description="zo-adamm: of both moments, [0.9, 0.3] by default."
    )
    eps: Annotated[float, Field(ge=1e-30)] = Field(
        1e-8, description="zo-adamm: beside the root of the second moment."
    )


class ZOAdaMM(OptimizerSection, ZOAdaMMKeys):
    """ZO-AdaMM's section of a recipe."""

    TITLE = "ZO-AdaMM"
    CITATION = "1910.06513"
    # full, lora, prefix, prompt: from the grids of a benchmark on language models (ZO-Bench, arXiv
    # 2402.11592). ia3, norm and bias are R-AdaZO's, not measured.
    LEARNING_RATES: ClassVar = {
        "full": 1e-5,
        "lora": 5e-5,
        "ia3": 5e-3,
        "prefix": 1e-4,
        "prompt": 1e-4,
        "bias": 1e-3,
        "norm": 1e-3,
    }

    name: Literal["zo-adamm"] = Field(
        "zo-adamm", description="zo-adamm: AMSGrad on the estimate (arXiv 1910.06513)."
    )

    def rule(self) -> ZOAdaMMRule:
        return ZOAdaMMRule(AdamConstants(*self.betas, lr=0.0, correction=1.0, eps=self.eps))

    def state(self) -> tuple[str, ...]:
        return ("exp_avg", "exp_avg_sq", "max_exp_avg_sq")  # torch.optim.Adam's names

    def step_rms(self, gradient_rms: float) -> float:
        """As if v were the mean of g**2: its largest value is more, so that steps are shorter."""
        del gradient_rms
        beta1 = self.betas[0]
        return math.sqrt((1 - beta1) / (1 + beta1))

    def walk_rms(self, gradient_rms: float) -> float:
        """The shares of a g in all later m add up to g."""
        del gradient_rms
        return 1.0


class ZOAdaMMRule:
    """The rule above. Its only state is the weights' moments."""

    def __init__(self, constants: AdamConstants) -> None:
        self.constants = constants

    def update(
        self, step: int, projected_grad: Sequence[float], lr: float, directions: Directions
    ) -> Callable[[Weight], None]:
        newest = gradient(step, projected_grad, directions)
        constants = replace(self.constants, lr=lr)
        return lambda weight: weight.adam(newest, constants)

    def state_dict(self) -> dict[str, Any]:
        return {}

    def load_state_dict(self, numbers: dict[str, Any]) -> None:
        del numbers
