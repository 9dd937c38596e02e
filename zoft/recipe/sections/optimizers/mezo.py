"""MeZO: zeroth-order SGD (Malladi et al., NeurIPS 2023, arXiv 2305.17333, algorithm 1)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, ClassVar, Literal

from pydantic import Field

from zoft.recipe.sections.optimizers.rule import Directions, OptimizerSection, Weight, gradient


class MeZO(OptimizerSection):
    """Plain SGD on the estimate. No state at all: an update is its slopes and its rate."""

    TITLE = "MeZO"
    CITATION = "2305.17333"
    # lora, prefix, full: the paper's grids. The others scale R-AdaZO's by the slopes that were seen
    # there (docs/tuning.md); bias is taken over from norm.
    LEARNING_RATES: ClassVar = {
        "full": 1e-6,
        "lora": 1e-4,
        "ia3": 5e-3,
        "prefix": 1e-2,
        "prompt": 1e-3,
        "bias": 1e-4,
        "norm": 1e-4,
    }
    PROPORTIONAL = True

    name: Literal["mezo"] = Field(
        "mezo", description="mezo: plain zeroth-order SGD (arXiv 2305.17333)."
    )

    def rule(self) -> MeZORule:
        return MeZORule()


class MeZORule:
    """theta <- theta - lr * (1/K) sum_k c_k z_k."""

    def update(
        self, step: int, projected_grad: Sequence[float], lr: float, directions: Directions
    ) -> Callable[[Weight], None]:
        total = gradient(step, projected_grad, directions, -lr)
        return lambda weight: weight.add(total)

    def state_dict(self) -> dict[str, Any]:
        return {}

    def load_state_dict(self, numbers: dict[str, Any]) -> None:
        del numbers
