"""What rounding does to weights that learn in a low precision, beside what the updates do."""

from __future__ import annotations

import math
from dataclasses import dataclass
from statistics import NormalDist, fmean

from zoft.engine.optimizers.lr_schedule import learning_rate
from zoft.recipe.resolved import Resolved

MANTISSA = {"float32": 23, "bfloat16": 7, "float16": 10}  # stored bits


@dataclass(frozen=True, slots=True)
class Diffusion:
    """RMS over the weights after all steps: of the updates' sum, and of the stochastic rounding's.

    `assumed` says what both rest on.
    """

    update: float
    rounding: float
    assumed: str


def diffusion(recipe: Resolved, weight_rms: float) -> Diffusion | None:
    """docs/methods.md#low-precision-updates: a step of RMS D that is rounded stochastically to multiples
    of ulp > D adds a variance of D * ulp, so T steps diffuse by sqrt(T D ulp); updates across each other
    go sqrt(T) D.

    None where tuned weights are float32: there, an ulp is far below a step.
    """
    settings = recipe.optimizer
    if recipe.model.dtype == "float32":
        return None
    lr = settings.lr * settings.step_rms(1.0)
    assumed = f", |c| 1 ({settings.TITLE}'s steps are lr |c|)" if settings.PROPORTIONAL else ""
    steps = [
        learning_rate(
            step,
            lr=lr,
            steps=recipe.train.steps,
            schedule=settings.schedule,
            warmup_steps=settings.warmup_steps,
        )
        for step in range(1, recipe.train.steps + 1)
    ]
    ulp = mean_ulp(weight_rms, MANTISSA[recipe.model.dtype])
    return Diffusion(
        update=math.sqrt(sum(step * step for step in steps)),
        rounding=math.sqrt(sum(min(step * ulp, ulp * ulp / 4) for step in steps)),
        assumed=f"normal weights of RMS {weight_rms:g}{assumed}",
    )


def mean_ulp(rms: float, mantissa: int) -> float:
    """The mean spacing of floats at normal weights: 2**(floor(log2 |w|) - mantissa)."""
    quantile = NormalDist(sigma=rms).inv_cdf
    # |w| at which shares of 1/1024, 3/1024, ... 1023/1024 of the normal weights are smaller.
    sizes = [quantile((1 + (i + 0.5) / 512) / 2) for i in range(512)]
    return fmean(2.0 ** (math.floor(math.log2(size)) - mantissa) for size in sizes)
