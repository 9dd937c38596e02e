"""Which weights are worth a probe? Signal, row energy and curvature along random directions in them.

docs/methods.md#groups-of-weights has the formulas.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from statistics import fmean

import numpy as np
import numpy.typing as npt
from torch import nn

from zoft.engine.estimator import Estimator, Losses
from zoft.engine.objectives.batch import Forward
from zoft.engine.optimizers.update import Tuned
from zoft.errors import EnvironmentProblem
from zoft.models.adapters import of_adapter
from zoft.models.blocks import find_blocks
from zoft.models.trainable import is_norm

THIRDS = ("first", "middle", "last")

Samples = npt.NDArray[np.float64]
BatchLoss = Callable[[Forward], Losses]  # of a batch, in a model


@dataclass(frozen=True)
class Probed:
    """What `probe_weights` found: `samples` (K, 3) of signal, row energy and curvature, one line for
    each direction; `rows` are the examples of a pass."""

    samples: Samples
    rows: int

    @property
    def means(self) -> tuple[float, float, float]:
        """Signal gamma, row energy Gamma and curvature kappa."""
        signal, energy, curvature = self.samples.mean(0).tolist()
        return signal, energy, curvature

    @property
    def chance(self) -> float:
        """The signal that rows of unrelated gradients exceed once in forty times.

        Their mean slope squared is energy / rows times a chi-square of one degree of freedom, whose
        variance is 2.
        """
        return 2 * math.sqrt(2 / len(self.samples)) * self.means[1] / (self.rows - 1)

    @property
    def has_signal(self) -> bool:
        """Whether the signal can be told from zero."""
        return self.means[0] > self.chance

    @property
    def has_curvature(self) -> bool:
        """Whether the curvature is two of its standard errors above zero."""
        spread = self.samples[:, 2].std(ddof=1) / math.sqrt(len(self.samples))
        return bool(self.means[2] > 2 * spread)

    @property
    def noise_scale(self) -> tuple[float, float]:
        """sigma**2 / |G|**2 in rows, and its standard error: infinite where there is no signal, and
        the least that it may then be in place of the first."""
        if self.has_signal:
            return jackknife(lambda samples: samples[:, 1].mean() / samples[:, 0].mean() - 1, self)
        signal, energy, _ = self.means
        most = max(0.0, signal) + self.chance
        return energy / most - 1, math.inf

    def gain_beside(self, other: Probed) -> tuple[float, float] | None:
        """e = gamma**2 / (kappa Gamma) over that of other weights, which were probed on the same rows,
        and its standard error; None where a signal or a curvature cannot be told from zero."""
        if not all(x.has_signal and x.has_curvature for x in (self, other)):
            return None
        return jackknife(lambda mine, its: gain(mine) / gain(its), self, other)


def gain(samples: Samples) -> float:
    """e = gamma**2 / (kappa Gamma)."""
    signal, energy, curvature = samples.mean(0)
    return float(signal**2 / (curvature * energy))


def jackknife(statistic: Callable[..., float], *probed: Probed) -> tuple[float, float]:
    """A statistic of samples, and its standard error from leaving out one direction at a time."""
    count = len(probed[0].samples)
    without = [statistic(*(np.delete(x.samples, k, axis=0) for x in probed)) for k in range(count)]
    return statistic(*(x.samples for x in probed)), float(np.std(without) * math.sqrt(count - 1))


def probe_weights(
    estimator: Estimator,
    batches: Sequence[BatchLoss],
    at_rest: Sequence[float],
    between: Callable[[], None] = lambda: None,
) -> Probed:
    """Probe the weights that the estimator's view moves: direction k of step 0 (which trains nothing) on
    batch k, one direction for all of its examples. `at_rest` is what `losses_at_rest` gives.

    `between` is called after each direction: to stop by raising. A loss that is not finite gives NaN.
    """
    epsilon = estimator.perturbation
    samples = []
    for k, (batch, rest) in enumerate(zip(batches, at_rest, strict=True)):
        plus, minus = _both_signs(estimator, k, batch)
        slopes = (plus - minus) / (2 * epsilon)
        rows, energy = len(slopes), (slopes**2).mean()
        # The mean of c_i c_j over pairs of different examples: what they agree on.
        signal = (rows * slopes.mean() ** 2 - energy) / (rows - 1)
        curvature = (plus.mean() + minus.mean() - 2 * rest) / epsilon**2
        samples.append((signal, energy, curvature))
        between()
    return Probed(np.array(samples), rows)


def losses_at_rest(estimator: Estimator, batches: Sequence[BatchLoss]) -> list[float]:
    """The mean over examples of each batch's losses at the weights themselves."""
    view = estimator.view
    return [fmean(estimator.example_losses(None, (0.0,), partial(x, view))) for x in batches]


def _both_signs(estimator: Estimator, k: int, batch: BatchLoss) -> tuple[Samples, Samples]:
    """Each example's loss at +epsilon and at -epsilon, (B,), along one direction for all of them."""
    shared = replace(estimator, examples=None)
    z, epsilon, losses = shared.direction(0, k), shared.perturbation, partial(batch, shared.view)
    passes = [(epsilon, -epsilon)] if shared.paired else [(epsilon,), (-epsilon,)]
    found = [x for scales in passes for x in shared.example_losses(z, scales, losses)]
    plus, minus = np.array(found).reshape(2, -1)
    return plus, minus


def groups_of(model: nn.Module, weights: Iterable[Tuned]) -> dict[str, list[Tuned]]:
    """The tuned weights by kind of module and third of depth, in the model's order."""
    try:
        blocks = find_blocks(model)
        inside, depth = f"{blocks.name}.", len(blocks.modules)
    except EnvironmentProblem:  # no list of blocks
        inside, depth = "", 0
    groups: dict[str, list[Tuned]] = {}
    for weight in weights:
        place = "outside"
        if depth and weight.name.startswith(inside):
            number = int(weight.name.removeprefix(inside).partition(".")[0])
            place = THIRDS[3 * number // depth]
        groups.setdefault(f"{_kind(model, weight.name)} {place}", []).append(weight)
    return groups


def _kind(model: nn.Module, name: str) -> str:
    """The last part of the name of the module that has the parameter, or that its adapter is for."""
    parts = name.split(".")[:-1]
    while len(parts) > 1 and of_adapter(".".join(parts)):
        parts.pop()
    module = model.get_submodule(".".join(parts))
    if isinstance(module, nn.Embedding):
        return "embeddings"
    if is_norm(module):
        return "norms"
    # A number counts modules of one kind: experts, parts of an nn.Sequential.
    return next((part for part in reversed(parts) if not part.isdigit()), "weights")
