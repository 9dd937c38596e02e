"""Preflight: pairing, noise and rounding of the first step, measured before training begins."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from zoft.engine.build import Engine
from zoft.engine.diagnostics import (
    examples_agree,
    measure_delivery,
    measure_noise,
    pairs_agree,
)
from zoft.engine.objectives.batch import Batch
from zoft.errors import RecipeError
from zoft.recipe.resolved import Resolved
from zoft.training.trainer import Trainer


@dataclass(frozen=True, slots=True)
class Preflight:
    """What was found. `noise` goes to the journal's header and run.json: the slope of one direction, its
    noise and bias, and the share and gain of the perturbation that rounding delivers."""

    paired: bool
    noise: dict[str, Any]


def preflight(trainer: Trainer, say: Callable[[str], None]) -> Preflight:
    """Look at the trainer's first step; nothing is changed.

    Raises RecipeError if the model mixes the rows of a batch, so that examples cannot have directions
    of their own.
    """
    paired = choose_pairing(trainer)
    engine, batches = trainer.engine.with_pairing(paired), trainer.batches(1)
    return Preflight(paired, measure_snr(trainer.recipe, engine, batches, say))


def choose_pairing(trainer: Trainer) -> bool:
    """Whether both signs of a probe run as one batch: `optimizer.paired`, its `auto` measured.

    Raises RecipeError as `preflight` does.
    """
    recipe, engine, batches = trainer.recipe, trainer.engine, trainer.batches(1)
    examples = [trainer.train_set[row] for row in trainer.order.rows(1)[:2]]
    if engine.estimator.examples is not None:
        width = engine.objective.width(examples)
        both, alone = (
            engine.losses_of([engine.objective.collate(some, width).to(engine.device)])
            for some in (examples, examples[:1])
        )
        if not examples_agree(engine.estimator, both, alone):
            raise RecipeError(
                "an example's loss depends on the others in its batch, so examples cannot have "
                "directions of their own: set optimizer.scope=batch"
            )
    settings = recipe.optimizer
    if settings.paired != "auto":
        return settings.paired
    return settings.sides == 2 and pairs_agree(engine.estimator, engine.losses_of(batches))


def measure_snr(
    recipe: Resolved, engine: Engine, batches: Sequence[Batch], say: Callable[[str], None]
) -> dict[str, Any]:
    """Measure the noise of the first slope and the rounding of its probe, and warn of either
    (docs/methods.md#noise-of-the-forward-pass)."""
    noise = measure_noise(engine.estimator, engine.losses_of(batches))
    if not math.isfinite(noise.projected_grad):
        say("warning: the loss of the first batch is not finite; its steps will be skipped")
        return {}
    ratio = noise.signal_to_noise
    say(
        f"signal-to-noise of the projected gradient: {min(ratio, 9999):.1f} "
        f"(|c| {noise.projected_grad:.3g}; doubling the perturbation changes c by {noise.bias:.0%})"
    )
    if ratio < 3:
        say(
            "warning: the forward pass's rounding hides the signal; try a larger "
            "optimizer.perturbation or model.compute_dtype=float32"
        )
    found: dict[str, Any] = {
        "projected_grad": noise.projected_grad,
        "noise": noise.noise,
        "bias": noise.bias,
    }
    estimator = engine.estimator
    direction = estimator.direction(0, 0)
    delivery = measure_delivery(engine.view, engine.weights, direction, estimator.perturbation)
    if delivery is not None:
        found["lost"], found["gain"] = delivery.lost, delivery.gain
        say(
            f"rounding to {recipe.model.compute_dtype} loses {delivery.lost:.1%} of the "
            f"perturbation, mean gain {delivery.gain:.2f}"
        )
        if delivery.lost > 0.05 or abs(delivery.gain - 1) > 0.15:
            say("warning: raise optimizer.perturbation or set model.compute_dtype=float32")
    return found
