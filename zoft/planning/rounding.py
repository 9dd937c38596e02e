"""What rounding does to weights that learn in a low precision, beside what the updates do."""

from __future__ import annotations

import math
from dataclasses import dataclass

from zoft.engine.optimizers.lr_schedule import learning_rate
from zoft.engine.optimizers.radazo import folded_lr
from zoft.recipe.schema import Recipe

MANTISSA = {"float32": 23, "bfloat16": 7, "float16": 10}  # stored bits


@dataclass(frozen=True, slots=True)
class Diffusion:
    """RMS over the weights after all steps: of the updates' sum, and of the stochastic rounding's.

    `assumed` says what both rest on.
    """

    update: float
    rounding: float
    assumed: str


def diffusion(recipe: Recipe, weight_rms: float) -> Diffusion | None:
    """docs/methods.md#low-precision-updates: a step of RMS D that is rounded stochastically to multiples
    of ulp > D adds a variance of D * ulp, so T steps diffuse by sqrt(T D ulp); updates across each other
    go sqrt(T) D.

    None where tuned weights are float32: there, an ulp is far below a step.
    """
    settings = recipe.optimizer
    if recipe.model.dtype == "float32":
        return None
    assert isinstance(settings.lr, float)
    lr, assumed = settings.lr, ""
    if settings.name == "mezo":
        assumed = ", |c| 1 (MeZO's steps are lr |c|)"
    elif settings.moments == "scalar" and settings.fold_momentum:
        lr = folded_lr(lr, settings.betas[0])
    steps = [
        learning_rate(
            step, lr=lr, steps=recipe.train.steps, schedule=settings.schedule,
            warmup_steps=settings.warmup_steps,
        )
        for step in range(1, recipe.train.steps + 1)
    ]  # fmt: skip
    ulp = mean_ulp(weight_rms, MANTISSA[recipe.model.dtype])
    return Diffusion(
        update=math.sqrt(sum(step * step for step in steps)),
        rounding=math.sqrt(sum(min(step * ulp, ulp * ulp / 4) for step in steps)),
        assumed=f"normal weights of RMS {weight_rms:g}{assumed}",
    )


def mean_ulp(rms: float, mantissa: int) -> float:
    """The mean spacing of floats at normal weights: 2**(floor(log2 |w|) - mantissa)."""
    quantiles = [(i + 0.5) / 512 for i in range(512)]
    total = 0.0
    for q in quantiles:  # |w| at which a share q of the normal weights is smaller, by bisection
        low, high = 0.0, 6.0
        for _ in range(40):
            middle = (low + high) / 2
            low, high = (middle, high) if math.erf(middle / math.sqrt(2)) < q else (low, middle)
        total += 2.0 ** (math.floor(math.log2(low * rms)) - mantissa)
    return total / len(quantiles)
