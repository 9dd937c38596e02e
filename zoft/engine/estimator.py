"""Projected gradients from forward passes: what a step measures. No weight is ever written here."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from zoft.engine.optimizers.measurement import Measurement
from zoft.engine.probe.directions import Direction, Directions
from zoft.engine.probe.view import ProbedModel


@dataclass(frozen=True, slots=True)
class Losses:
    """What a batch of B examples lost in one pass, on the device: the sum over each example's items
    (tokens, or the example itself) for every copy of the batch, (copies, B) float64, and the number
    of items, (B,) float64."""

    sums: Tensor
    weights: Tensor


Scales = tuple[float, ...]  # of z, one for each copy of the batch
Loss = Callable[[], Losses]  # the step's batch, inside the probe that is open


@dataclass(frozen=True, slots=True)
class Estimator:
    """Simultaneous perturbation (SPSA) over `count` directions, on one and the same batch.

    Two-sided: 2K forward passes, or with `paired` K of twice the rows. One-sided: K + 1. With
    `examples` B, each of a batch's B examples has its own K directions, which the same passes measure.
    Source: docs/methods.md#projected-gradients; Spall 1992.
    """

    view: ProbedModel
    directions: Directions
    perturbation: float
    count: int = 1
    sides: int = 2
    examples: int | None = None
    paired: bool = False

    def direction(self, step: int, k: int) -> Direction:
        return self.directions.at(step, k)

    def measure(self, step: int, losses: Loss) -> Measurement:
        """`losses` runs the step's batch forward at whatever weights the open probe shows: once, where
        no weight is left to probes."""
        if not self.view.probed:
            return self._at_rest(step, losses)
        todo: list[tuple[Direction | None, Scales]] = [(None, (0.0,))] if self.sides == 1 else []
        for k in range(self.count):
            z = self.direction(step, k)
            todo += [(z, scales) for scales in self._scales(self.perturbation)]
        passes = []
        for direction, scales in todo:
            with self._probe(direction, scales):
                passes.append(losses())
        copies, weights = _on_the_host(passes)
        if self.sides == 1:
            minus, plus = [copies[0]] * self.count, copies[1:]
        else:
            plus, minus = copies[::2], copies[1::2]
        pairs = list(zip(plus, minus, strict=True))
        reach = self.sides * self.perturbation
        grads = [c for p, m in pairs for c in self._slopes(p, m, weights, reach)]
        means = [(_mean(p, weights), _mean(m, weights)) for p, m in pairs]
        return Measurement(
            step,
            _float32([p for p, _ in means]),
            _float32([m for _, m in means]),
            _float32(grads),
        )

    def _at_rest(self, step: int, losses: Loss) -> Measurement:
        with self._probe(None, (0.0,)):
            found = losses()
        [sums], weights = _on_the_host([found])
        [loss] = _float32([_mean(sums, weights)])
        slopes = (0.0,) * (self.count * (self.examples or 1))
        finite = slopes if math.isfinite(loss) else (math.nan,) * len(slopes)
        return Measurement(step, (loss,) * self.count, (loss,) * self.count, finite)

    def slopes(
        self, direction: Direction, perturbation: float, losses: Loss
    ) -> tuple[list[float], float]:
        """The projected gradients along one direction, by central difference, and the batch's mean
        loss over both signs."""
        both = []
        for scales in replace(self, sides=2)._scales(perturbation):
            with self._probe(direction, scales):
                both.append(losses())
        (plus, minus), weights = _on_the_host(both)
        slopes = self._slopes(plus, minus, weights, 2 * perturbation)
        return slopes, (_mean(plus, weights) + _mean(minus, weights)) / 2

    def example_losses(
        self, direction: Direction | None, scales: Scales, losses: Loss
    ) -> list[float]:
        """Each example's mean loss at theta + scale * z, copy after copy, of one pass."""
        with self._probe(direction, scales):
            found = losses()
        copies, weights = _on_the_host([found])
        return [x / weight for copy in copies for x, weight in zip(copy, weights, strict=True)]

    def _scales(self, perturbation: float) -> list[Scales]:
        """The passes that measure one direction: the scales of z in each."""
        if self.sides == 1:
            return [(perturbation,)]
        if self.paired:
            return [(perturbation, -perturbation)]
        return [(perturbation,), (-perturbation,)]

    def _probe(self, direction: Direction | None, scales: Scales) -> AbstractContextManager[None]:
        return self.view.probe(direction, *scales, examples=self.examples if direction else None)

    def _slopes(
        self, plus: Sequence[float], minus: Sequence[float], weights: Sequence[float], reach: float
    ) -> list[float]:
        if self.examples is None:
            return [(_mean(plus, weights) - _mean(minus, weights)) / reach]
        return [(p - m) / w / reach for p, m, w in zip(plus, minus, weights, strict=True)]


def _on_the_host(passes: Sequence[Losses]) -> tuple[list[list[float]], list[float]]:
    """The sums of all copies of all passes, and the weights: one transfer, one synchronisation."""
    table = torch.cat([*(x.sums for x in passes), passes[0].weights[None]]).tolist()
    return table[:-1], table[-1]


def _mean(sums: Sequence[float], weights: Sequence[float]) -> float:
    # fsum is exact, so micro-batches may come in any split; it refuses infinities of both signs.
    total = math.fsum(sums) if all(map(math.isfinite, sums)) else math.nan
    return total / math.fsum(weights)


def _float32(values: Sequence[float]) -> tuple[float, ...]:
    """Rounded to float32, in the shortest decimal form: what the journal holds and updates use."""
    with np.errstate(over="ignore"):
        return tuple(float(str(np.float32(x))) for x in values)
