"""Preflight: pairing, noise and rounding of the first step, measured before training begins."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch

from zoft.data.examples import length
from zoft.engine.build import Engine
from zoft.engine.diagnostics import (
    agrees_with_moved_weights,
    examples_agree,
    measure_delivery,
    measure_noise,
    pairs_agree,
)
from zoft.engine.estimator import Losses
from zoft.engine.moved import MovedModel
from zoft.engine.objectives.batch import Batch, Forward
from zoft.engine.objectives.objective import Objective, batch_losses
from zoft.errors import EnvironmentProblem, RecipeError
from zoft.models.load import forward_explained
from zoft.recipe.resolved import Resolved
from zoft.system.host_memory import gib
from zoft.training.trainer import Trainer


@dataclass(frozen=True, slots=True)
class Preflight:
    """What was found. `noise` goes to the journal's header and run.json: the slope of one direction, its
    noise and bias, and the share and gain of the perturbation that rounding delivers."""

    paired: bool
    noise: dict[str, Any]


def preflight(trainer: Trainer, spare: int | None, say: Callable[[str], None]) -> Preflight:
    """Look at the trainer's first step; nothing is changed. `spare` bytes of the memory budget are not
    planned for (None: unknown). Where no weight is left to probes there is nothing to look at.

    Raises RecipeError if the model mixes the rows of a batch, so that examples cannot have directions
    of their own, EnvironmentProblem if its probes are not what they should be.
    """
    if not trainer.engine.view.probed:
        return Preflight(paired=False, noise={})
    paired = check_probes(trainer, spare, say)
    engine, batches = trainer.engine.with_pairing(paired), trainer.batches(1)
    return Preflight(paired, measure_snr(trainer.recipe, engine, batches, say))


def check_probes(trainer: Trainer, spare: int | None, say: Callable[[str], None]) -> bool:
    """Whether both signs of a probe run as one batch, once the probes are what they should be.

    Raises as `preflight` does.
    """
    with _explained(trainer):
        check_weights(trainer, spare, say)
        check_examples(trainer)
        return choose_pairing(trainer)


@contextmanager
def _explained(trainer: Trainer) -> Iterator[None]:
    """Say what to do about whatever a model raises in a probe that it does not raise by itself."""
    model, by_example = trainer.recipe.model, trainer.engine.estimator.examples is not None
    try:
        with forward_explained(model.name, "float32" if by_example else model.compute_dtype):
            yield
    except EnvironmentProblem as error:
        if error.__cause__ is None or not by_example:
            raise
        raise RecipeError(
            f"{error} at probes of each example: set optimizer.scope=batch"
        ) from error


def check_weights(trainer: Trainer, spare: int | None, say: Callable[[str], None]) -> None:
    """Compare a probe with the model whose weights are really moved, on the shortest row of the first
    batch. Raises EnvironmentProblem if they disagree."""
    engine = trainer.engine
    rows = [trainer.train_set[row] for row in trainer.order.rows(1)]
    batches = engine.batches([min(rows, key=length)], 1)
    floating = [p for p in engine.model.parameters() if p.is_floating_point()]
    exact = all(p.dtype == torch.float32 for p in floating)
    moved = MovedModel(
        engine.model,
        {weight.name: weight.param for weight in engine.weights},
        torch.float32 if exact else engine.view.compute_dtype,
        engine.view.masked,
    )
    if spare is not None and moved.extra_bytes > spare:
        say(f"probes are not compared with moved weights: {gib(moved.extra_bytes)} are not free")
        return
    losses = partial(_losses, engine.objective, batches)
    if not agrees_with_moved_weights(engine.estimator, moved, losses):
        raise EnvironmentProblem(
            f"{trainer.recipe.model.name}: a probe's loss is not that of the model with moved weights, "
            "so zoft would tune it wrongly; tune.method=lora may work"
        )


def _losses(objective: Objective, batches: Sequence[Batch], model: Forward) -> Losses:
    return batch_losses(objective, model, batches)


def check_examples(trainer: Trainer) -> None:
    """Raises RecipeError if examples are to have directions of their own and the model mixes rows."""
    engine = trainer.engine
    if engine.estimator.examples is None:
        return
    rows = [trainer.train_set[row] for row in trainer.order.rows(1)]
    other = next((row for row in rows if row != rows[0]), None)
    if other is None:
        return
    width = engine.objective.width([rows[0], other])
    both, twice = (
        engine.losses_of([engine.objective.collate([rows[0], row], width).to(engine.device)])
        for row in (other, rows[0])
    )
    if not examples_agree(engine.estimator, both, twice):
        raise RecipeError(
            "an example's loss depends on the others in its batch, so examples cannot have "
            "directions of their own: set optimizer.scope=batch"
        )


def choose_pairing(trainer: Trainer) -> bool:
    """Whether both signs of a probe run as one batch: `optimizer.paired`, its `auto` measured.

    Raises RecipeError if they are to and the model mixes the rows of a batch.
    """
    settings, engine = trainer.recipe.optimizer, trainer.engine
    if settings.paired is False or settings.sides == 1:
        return False
    agree = pairs_agree(engine.estimator, engine.losses_of(trainer.batches(1)))
    if settings.paired is True and not agree:
        raise RecipeError(
            "optimizer.paired: the model mixes the rows of a batch, so both signs cannot run as one: "
            "set it to auto"
        )
    return agree


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
