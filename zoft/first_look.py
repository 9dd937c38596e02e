"""The first look: can the loss's change be measured at all with this perturbation and type?"""

from __future__ import annotations

import math
from typing import Any

from zoft.trainer import Trainer
from zoft.zo.diagnostics import measure_delivery, measure_noise


def look_at_the_signal(trainer: Trainer) -> dict[str, Any]:
    """Measure and tell what METHODS sections 2 and 6 warn of: noise of c, rounding of the probe."""
    estimator, say = trainer.estimator, trainer.narrator.say
    batches = trainer.batches(1)
    noise = measure_noise(estimator, lambda: trainer.loss(batches))
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
    delivery = measure_delivery(estimator.view, direction, estimator.perturbation)
    if delivery is not None:
        found["lost"], found["gain"] = delivery.lost, delivery.gain
        say(
            f"rounding to {trainer.recipe.model.compute_dtype} loses {delivery.lost:.1%} of the "
            f"perturbation, mean gain {delivery.gain:.2f}"
        )
        if delivery.lost > 0.05 or abs(delivery.gain - 1) > 0.15:
            say("warning: raise optimizer.perturbation or set model.compute_dtype=float32")
    return found
