"""The optimizer of a run: a rule of recipe/sections/optimizers applied to the tuned weights."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from zoft.engine.kernels import reference
from zoft.engine.kernels.numerics.exact_sum import DirectionSum, Rounding
from zoft.engine.optimizers.measurement import Measurement
from zoft.engine.optimizers.update import Tuned, Weights
from zoft.engine.probe.directions import Directions, Structure
from zoft.engine.probe.structures.table import directions_of, structure_of
from zoft.recipe.sections.optimizers.rule import AdamConstants, OptimizerSection, UpdateRule


@dataclass(frozen=True, slots=True)
class WeightUpdate:
    """A tuned weight in one update: its structure, values and state (float32, by name), decay and
    rounding."""

    tuned: Tuned
    structure: Structure
    weight: Tensor
    state: dict[str, Tensor]
    decay: float
    rounding: Rounding

    def add(self, total: DirectionSum) -> None:
        self._add(self.weight, total, self.decay)

    def accumulate(self, name: str, total: DirectionSum, decay: float) -> None:
        self._add(self.state[name], total, decay)

    def add_state(self, name: str, factor: float) -> None:
        reference.add_scaled(
            self.weight, self.state[name], factor,
            param=self.tuned.param, decay=self.decay, rounding=self.rounding,
        )  # fmt: skip

    def adam(self, gradient: DirectionSum, constants: AdamConstants) -> None:
        self._adam([gradient], constants, tuple(self.state.values()))

    def adam_window(self, gradients: Sequence[DirectionSum], constants: AdamConstants) -> None:
        self._adam(gradients, constants, ())

    def _add(self, tensor: Tensor, total: DirectionSum, decay: float) -> None:
        self.structure.update(
            tensor, [total], param=self.tuned.param, decay=decay, rounding=self.rounding
        )

    def _adam(
        self, sums: Sequence[DirectionSum], adam: AdamConstants, moments: Sequence[Tensor]
    ) -> None:
        self.structure.update(
            self.weight, sums, param=self.tuned.param, decay=self.decay, rounding=self.rounding,
            adam=adam, moments=moments,
        )  # fmt: skip


class Optimizer:
    """Moves the tuned weights by a rule, a measurement at a time."""

    def __init__(
        self, weights: Weights, rule: UpdateRule, directions: Directions, settings: OptimizerSection
    ) -> None:
        self.weights, self.rule, self.directions = weights, rule, directions
        self.weight_decay, self.state = settings.weight_decay, settings.state()
        if self.state:
            weights.keep(*self.state)

    def update(self, measurement: Measurement, lr: float) -> None:
        """Move the weights by one finite measurement."""
        move = self.rule.update(measurement.step, measurement.projected_grad, lr, self.directions)
        shrink, names = lr * self.weight_decay, self.state
        rounding = Rounding(self.directions.seed, measurement.step)

        def update(tuned: Tuned, weight: Tensor, state: Sequence[Tensor]) -> None:
            decay = 1.0 - shrink if tuned.decays else 1.0
            kept = dict(zip(names, state, strict=True))
            structure = structure_of(weight, self.directions.structure)
            move(WeightUpdate(tuned, structure, weight, kept, decay, rounding))

        self.weights.apply(update)

    def apply(self, measurement: Measurement, lr: float) -> bool:
        """Move the weights, unless the measurement is not finite; returns whether they moved."""
        if measurement.finite:
            self.update(measurement, lr)
        return measurement.finite

    def state_dict(self) -> dict[str, Any]:
        """Numbers for trainer.json; state tensors are with the weights."""
        return self.rule.state_dict()

    def load_state_dict(self, numbers: dict[str, Any]) -> None:
        """The inverse of `state_dict`. Raises KeyError if the state is of another rule."""
        self.rule.load_state_dict(numbers)


def optimizer_for(settings: OptimizerSection, seed: int, weights: Weights) -> Optimizer:
    """The optimizer of a recipe without `auto`."""
    return Optimizer(weights, settings.rule(), directions_of(settings, seed), settings)
