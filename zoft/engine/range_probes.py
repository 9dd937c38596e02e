"""Probes of several lengths: which is the best to measure slopes with, and how far is far?"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from zoft.engine.diagnostics import measure_noise
from zoft.engine.estimator import Estimator, Loss
from zoft.engine.optimizers.measurement import rms

NEAR_BEST = 1.5  # errors of slopes up to this many times the least count as good


@dataclass(frozen=True, slots=True)
class Rung:
    """What probes of one length found: RMS of c and of its noise; the relative change of c at twice
    the length; and for each batch by how much the loss, averaged over both signs, is above the
    weights' own. `lost` is the share of the perturbation that rounding takes, None where none does."""

    perturbation: float
    projected_grad: float
    noise: float
    bias: float
    rises: tuple[float, ...]
    lost: float | None = None

    @property
    def signal_to_noise(self) -> float:
        return math.inf if self.noise == 0 else self.projected_grad / self.noise

    @property
    def rise(self) -> float:
        return sum(self.rises) / len(self.rises)

    @property
    def curvature(self) -> float:
        """z^T H z by the second difference (l+ + l- - 2 l) / epsilon**2, mean over directions."""
        return 2 * self.rise / self.perturbation**2

    @property
    def error(self) -> float:
        """Relative RMS error of a slope: noise and bias. Infinite if a loss was not finite.

        The bias of a central difference is b epsilon**2, so c(2 epsilon) - c(epsilon) is three times
        it, and has the noise of both: the half at 2 epsilon, hence 1 + 1/4 of the variance.
        """
        c = self.projected_grad
        if not (math.isfinite(c) and c > 0):
            return math.inf
        noise = (self.noise / c) ** 2
        return math.sqrt(noise + max(0.0, self.bias**2 - 1.25 * noise) / 9)


def losses_at_rest(estimator: Estimator, batches: Sequence[Loss]) -> list[float]:
    """Each batch's mean loss at the weights themselves."""
    one_sided = replace(estimator, sides=1, count=1)
    return [one_sided.measure(0, batch).loss_minus[0] for batch in batches]


def measure_rung(
    estimator: Estimator,
    perturbation: float,
    batches: Sequence[Loss],
    at_rest: Sequence[float],
    between: Callable[[], None] = lambda: None,
) -> Rung:
    """Three probes for each batch, along directions of its own that every rung shares.

    `between` is called after each batch: to stop by raising.
    """
    at_length = replace(estimator, perturbation=perturbation)
    found = []
    for number, batch in enumerate(batches):
        found.append(measure_noise(at_length, batch, slopes=1, first=number))
        between()
    c = rms([x.projected_grad for x in found])
    wide = rms([x.bias * x.projected_grad for x in found])
    return Rung(
        perturbation=perturbation,
        projected_grad=c,
        noise=rms([x.noise for x in found]),
        bias=wide / c if c > 0 else 0.0,
        rises=tuple(x.loss - rest for x, rest in zip(found, at_rest, strict=True)),
    )


def best_perturbation(rungs: Sequence[Rung], current: float) -> Rung | None:
    """The rung with the least error; the `current` one if its error is nearly as small. None if no
    rung had finite losses."""
    least = min(rungs, key=lambda rung: rung.error)
    if not math.isfinite(least.error):
        return None
    for rung in rungs:
        if rung.perturbation == current and rung.error <= NEAR_BEST * least.error:
            return rung
    return least


def radius(lengths: Sequence[float], rises: Sequence[float], tolerance: float) -> float | None:
    """How far (RMS per weight) a random step goes that raises the loss by `tolerance`; None if no
    length does that. `lengths` ascend.

    A rise is quadratic where it begins: from the first length that is too far, back by a root, but
    not to lengths that were seen to be harmless. A loss that is not finite is too far.
    """
    harmless = 0.0
    for length, rise in zip(lengths, rises, strict=True):
        if not rise < tolerance:
            back = length * math.sqrt(tolerance / rise) if math.isfinite(rise) else harmless
            return max(back, harmless) or length
        harmless = length
    return None
