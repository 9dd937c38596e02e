"""FZOO (Dang et al., ICLR 2026, arXiv 2506.09034): zeroth-order SGD, normalised by the spread of the
losses.

    L_k = L(theta + epsilon z_k), k = 1 ... N             one batch, z of signs
    g = (1/N) sum_k (L_k - L_0) z_k                       L_0 = L(theta)
    sigma**2 = 1/(N - 1) sum_k (L_k - mean L)**2
    theta <- theta - lr g / sigma

A one-sided slope is c_k = (L_k - L_0) / epsilon, so (L_k - L_0) / sigma is c_k over the standard
deviation of all c: epsilon cancels, the slopes say all that the rule needs, and the journal holds them.
The paper divides g by epsilon as well, so its rate is ours times epsilon; its authors' code does not
(and divides sigma**2 by N). FZOO-R, which takes half of the losses from the step before, is not here.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field, field_validator

from zoft.recipe.sections.optimizers.rule import Directions, OptimizerSection, Weight, gradient


class FZOO(OptimizerSection):
    """FZOO's section of a recipe."""

    TITLE = "FZOO"
    CITATION = "2506.09034"
    # full: the authors' example for OPT-13B. The others are ten times R-AdaZO's, about as far in a
    # step: sqrt(8) for the directions, 4.4 for the momentum that it has. Not measured.
    LEARNING_RATES: ClassVar = {
        "full": 5e-5,
        "lora": 5e-4,
        "ia3": 5e-2,
        "prefix": 1e-1,
        "prompt": 5e-2,
        "bias": 1e-2,
        "norm": 1e-2,
    }

    name: Literal["fzoo"] = Field(
        "fzoo", description="fzoo: SGD over the spread of the losses (arXiv 2506.09034)."
    )
    directions: Annotated[int, Field(ge=1, le=1024)] = Field(
        8, description="fzoo: 8 by default, at least 2, whose losses are compared."
    )
    sides: Literal[2, 1] = Field(1, description="fzoo: 1 by default, as in the paper.")

    @field_validator("directions")
    @classmethod
    def _compares(cls, directions: int) -> int:
        if directions < 2:
            raise ValueError("fzoo compares the losses of directions: at least 2 of them")
        return directions

    def rule(self) -> FZOORule:
        return FZOORule()

    def step_rms(self, gradient_rms: float) -> float:
        """The slopes over their own deviation, averaged over the directions."""
        del gradient_rms
        return 1 / math.sqrt(self.directions)


class FZOORule:
    """The rule above. No state at all."""

    def update(
        self, step: int, projected_grad: Sequence[float], lr: float, directions: Directions
    ) -> Callable[[Weight], None]:
        spread = deviation(projected_grad)
        # Equal losses say nothing of their spread: the step stays where it is.
        total = gradient(step, projected_grad, directions, -lr / spread if spread else 0.0)
        return lambda weight: weight.add(total)

    def state_dict(self) -> dict[str, Any]:
        return {}

    def load_state_dict(self, numbers: dict[str, Any]) -> None:
        del numbers


def deviation(values: Sequence[float]) -> float:
    """The standard deviation of at least two values, by their number less one."""
    # fsum and a product: what sum and pow do to floats is not the same in every Python.
    mean = math.fsum(values) / len(values)
    return math.sqrt(math.fsum((x - mean) * (x - mean) for x in values) / (len(values) - 1))
