"""Is a probe measurable? Its signal beside the forward pass's noise, and what rounding takes of it."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from statistics import fmean

import torch

from zoft.engine.estimator import Estimator, Loss, Losses
from zoft.engine.moved import MovedModel
from zoft.engine.objectives.batch import Forward
from zoft.engine.optimizers.measurement import rms
from zoft.engine.optimizers.update import Weights
from zoft.engine.probe.directions import Direction
from zoft.engine.probe.structures.table import values_of
from zoft.engine.probe.view import ProbedModel
from zoft.errors import lacks_memory
from zoft.models.blocks import is_placeholder

LOUD = 10  # perturbations at which a wrong row's loss stands out of a low precision's rounding
RowLoss = Callable[[Forward], Losses]  # one example's, in a model
SAMPLE = 1 << 16  # elements of a parameter that are looked at


@dataclass(frozen=True, slots=True)
class Noise:
    """What `measure_noise` found: RMS of c, of its noise, the relative change of c at twice the
    perturbation (the bias, once it stands out of the noise), and the batch's mean loss at +epsilon and
    -epsilon together."""

    projected_grad: float
    noise: float
    bias: float
    loss: float

    @property
    def signal_to_noise(self) -> float:
        return self.projected_grad / self.noise if self.noise > 0 else math.inf


def measure_noise(estimator: Estimator, losses: Loss, slopes: int = 4, first: int = 0) -> Noise:
    """Three probes per direction, on directions of step 0 (which trains nothing) from `first` on, until
    so many slopes are measured: with a direction for every example, the first gives a batch of them.

    c at epsilon and at 1.1 epsilon differ by the noise of both: sqrt(1 + 1/1.21) of the first's. A
    repeat at the same epsilon would be bit-equal and show nothing
    (docs/methods.md#noise-of-the-forward-pass).
    """
    epsilon = estimator.perturbation
    found: list[float] = []
    near: list[float] = []
    wide: list[float] = []
    means: list[float] = []
    while len(found) < slopes:
        z = estimator.direction(0, first + len(means))
        at_epsilon, mean = estimator.slopes(z, epsilon, losses)
        means.append(mean)
        others = (estimator.slopes(z, scale * epsilon, losses)[0] for scale in (1.1, 2))
        for slope, close, far in zip(at_epsilon, *others, strict=True):
            found.append(slope)
            near.append(slope - close)
            wide.append(slope - far)
    c = rms(found)
    bias = rms(wide) / c if c > 0 else 0.0
    return Noise(c, rms(near) / math.sqrt(1 + 1 / 1.21), bias, fmean(means))


def pairs_agree(estimator: Estimator, losses: Loss) -> bool:
    """Whether +epsilon and -epsilon in one pass give what they give in two, up to rounding.

    A module that mixes the rows of a batch (experts with a capacity, say) makes the difference.
    """
    z, epsilon = estimator.direction(0, 0), LOUD * estimator.perturbation
    try:
        together = estimator.example_losses(z, (epsilon, -epsilon), losses)
    except (
        Exception
    ) as error:  # a module that makes no rows of its own (RoFormer's positions): any class
        if lacks_memory(error):
            raise
        return False
    alone = [
        loss
        for scale in (epsilon, -epsilon)
        for loss in estimator.example_losses(z, (scale,), losses)
    ]
    return _close(together, alone, _tolerance(estimator))


def examples_agree(estimator: Estimator, beside_another: Loss, beside_itself: Loss) -> bool:
    """Whether an example loses the same, first in a batch of two, whatever the second is and whichever
    direction that has. Passes of equal shape round alike. Raises MixedRows."""
    z, scales = estimator.direction(0, 0), (LOUD * estimator.perturbation,)
    one_direction = replace(estimator, examples=None)
    first, *others = (
        each.example_losses(z, scales, losses)[:1]
        for each, losses in (
            (estimator, beside_another),
            (estimator, beside_itself),
            (one_direction, beside_another),
        )
    )
    return all(_close(first, other, _tolerance(estimator)) for other in others)


def agrees_with_moved_weights(estimator: Estimator, moved: MovedModel, losses: RowLoss) -> bool:
    """Whether one example loses in a probe what it loses where the weights are really moved.

    `losses` runs that example in a model that shows it. In float32 where the weights are stored so
    (both sides agree to 1e-4 there, which no low precision can show), else in the type of a run's
    passes, where a pass over logits in another order differs by up to 6e-2. Where they do not agree,
    the moved model alone shows how far rounding carries its loss: twice that is allowed (a Mamba of
    random weights moves by 9e-4 as its weights move by 1e-8).
    """
    z, scale = estimator.direction(0, 0), LOUD * estimator.perturbation
    with estimator.view.computing_in(moved.compute_dtype):
        [found] = estimator.example_losses(z, (scale,), partial(losses, estimator.view))

    def expected(times: float) -> float:
        with moved.at(z, times * scale):
            lost = losses(moved)
        return float(lost.sums[0] / lost.weights)

    low = moved.compute_dtype != torch.float32
    wanted, tolerance = expected(1.0), 6e-2 if low else 1e-4
    if low or _close([found], [wanted], tolerance):
        return _close([found], [wanted], tolerance)
    rounding = max(abs(expected(1.0 + change) - wanted) for change in (1e-6, -1e-6))
    return _close([found], [wanted], tolerance + 2 * rounding)


def _tolerance(estimator: Estimator) -> float:
    return 1e-4 if estimator.view.compute_dtype == torch.float32 else 3e-2


def _close(found: list[float], expected: list[float], tolerance: float) -> bool:
    return all(
        abs(a - b) <= tolerance * max(1.0, abs(b)) or (math.isnan(a) and math.isnan(b))
        for a, b in zip(found, expected, strict=True)
    )


@dataclass(frozen=True, slots=True)
class Delivery:
    """What reaches the forward pass of +-epsilon: the share of elements whose two probes are equal,
    and the mean of the difference over 2 epsilon, both over all matrices."""

    lost: float
    gain: float


def measure_delivery(
    view: ProbedModel, weights: Weights, direction: Direction, perturbation: float
) -> Delivery | None:
    """Rounding of W +- epsilon to the type it is used in, on a sample of every tuned matrix.

    To be called after a probe, which shows these types. None where all matrices met their inputs in
    float32, or are perturbed inside their products (rank-1). Looked-up embedding rows are not counted;
    vectors are always perturbed in float32.
    """
    lost = gained = seen = 0.0
    refs = {ref.parameter: ref for leaf in view.leaves for ref in leaf.refs}
    for _ in weights.visits():
        for parameter, ref in list(refs.items()):
            weight = parameter.detach()
            dtype = view.delivered.get(parameter, torch.float32)
            if ref.param is None or weight.ndim < 2 or dtype == torch.float32:
                continue
            if is_placeholder(weight):
                continue
            del refs[parameter]
            part = weight.reshape(-1)[:SAMPLE]
            plus, minus = (torch.empty_like(part, dtype=dtype) for _ in range(2))
            direction.perturb(plus, part, ref.param, perturbation)
            direction.perturb(minus, part, ref.param, -perturbation)
            z = values_of(direction, part, ref.param)
            difference = plus.float() - minus.float()
            # A parameter counts by its size, not by its sample's.
            share = weight.numel() / part.numel()
            lost += share * (difference == 0).sum().item()
            gained += share * (difference * z).sum().item() / (2 * perturbation)
            seen += weight.numel()
    return None if not seen else Delivery(lost / seen, gained / seen)
