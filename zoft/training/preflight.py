"""The first look: can the loss's change be measured at all with this perturbation and type?"""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

from zoft.engine.diagnostics import examples_agree, measure_delivery, measure_noise, pairs_agree
from zoft.errors import RecipeError
from zoft.training.trainer import Trainer


def choose_passes(trainer: Trainer) -> None:
    """Settle `optimizer.paired: auto` by a look at one batch. Raises RecipeError if the model mixes
    the rows of a batch, so that examples cannot have directions of their own."""
    estimator, optimizer = trainer.estimator, trainer.recipe.optimizer
    batches = trainer.batches(1)
    if estimator.examples is not None:
        examples = [trainer.train_set[row] for row in trainer.order.rows(1)[:2]]
        width = trainer.objective.width(examples)
        both, alone = (
            [trainer.objective.collate(some, width).to(trainer.device)]
            for some in (examples, examples[:1])
        )
        if not examples_agree(
            estimator, lambda: trainer.losses(both), lambda: trainer.losses(alone)
        ):
            raise RecipeError(
                "an example's loss depends on the others in its batch, so examples cannot have "
                "directions of their own: set optimizer.scope=batch"
            )
    if optimizer.paired == "auto":
        paired = optimizer.sides == 2 and pairs_agree(estimator, lambda: trainer.losses(batches))
        trainer.recipe = trainer.recipe.model_copy(
            update={"optimizer": optimizer.model_copy(update={"paired": paired})}
        )
        trainer.estimator = replace(estimator, paired=paired)


def look_at_the_signal(trainer: Trainer) -> dict[str, Any]:
    """Measure noise of c and rounding of the probe (docs/methods.md#noise-of-the-forward-pass)."""
    estimator, say = trainer.estimator, trainer.narrator.say
    batches = trainer.batches(1)
    noise = measure_noise(estimator, lambda: trainer.losses(batches))
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
    direction = estimator.direction(0, 0)
    delivery = measure_delivery(estimator.view, trainer.weights, direction, estimator.perturbation)
    if delivery is not None:
        found["lost"], found["gain"] = delivery.lost, delivery.gain
        say(
            f"rounding to {trainer.recipe.model.compute_dtype} loses {delivery.lost:.1%} of the "
            f"perturbation, mean gain {delivery.gain:.2f}"
        )
        if delivery.lost > 0.05 or abs(delivery.gain - 1) > 0.15:
            say("warning: raise optimizer.perturbation or set model.compute_dtype=float32")
    return found
