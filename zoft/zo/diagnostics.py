"""Is a probe measurable? Its signal beside the forward pass's noise, and what rounding takes of it."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch

from zoft.zo.directions import Direction
from zoft.zo.estimators import Estimator, Loss
from zoft.zo.probe import View

SAMPLE = 1 << 16  # elements of a parameter that are looked at


@dataclass(frozen=True, slots=True)
class Noise:
    """What `measure_noise` found: RMS of c, of its noise, and the relative change of c at twice the
    perturbation (the bias, once it stands out of the noise)."""

    projected_grad: float
    noise: float
    bias: float

    @property
    def signal_to_noise(self) -> float:
        return self.projected_grad / self.noise if self.noise > 0 else math.inf


def measure_noise(estimator: Estimator, loss: Loss, directions: int = 4) -> Noise:
    """Six forward passes per direction, on directions of step 0 (which trains nothing).

    c at epsilon and at 1.1 epsilon differ by the noise of both: sqrt(1 + 1/1.21) of the first's. A
    repeat at the same epsilon would be bit-equal and show nothing (METHODS section 2).
    """
    near, wide = [], []
    square = 0.0
    epsilon = estimator.perturbation
    for k in range(directions):
        z = estimator.direction(0, k)
        c = [
            (estimator.loss_at(z, scale, loss) - estimator.loss_at(z, -scale, loss)) / (2 * scale)
            for scale in (epsilon, 1.1 * epsilon, 2 * epsilon)
        ]
        square += c[0] ** 2
        near.append(c[0] - c[1])
        wide.append(c[0] - c[2])
    rms = math.sqrt(square / directions)
    noise = math.sqrt(sum(x * x for x in near) / directions / (1 + 1 / 1.21))
    bias = math.sqrt(sum(x * x for x in wide) / directions) / rms if rms > 0 else 0.0
    return Noise(rms, noise, bias)


@dataclass(frozen=True, slots=True)
class Delivery:
    """What reaches the forward pass of +-epsilon: the share of elements whose two probes are equal,
    and the mean of the difference over 2 epsilon, both over all matrices."""

    lost: float
    gain: float


def measure_delivery(view: View, direction: Direction, perturbation: float) -> Delivery | None:
    """Rounding of W +- epsilon to the type it is used in, on a sample of every tuned matrix.

    To be called after a probe, which shows these types. None where all matrices met their inputs in
    float32. Looked-up embedding rows are not counted; vectors are always perturbed in float32.
    """
    lost = gained = seen = 0.0
    done: set[torch.nn.Parameter] = set()
    for slot in (slot for leaf in view.leaves for slot in leaf.slots):
        weight = slot.parameter.detach()
        dtype = view.delivered.get(slot.parameter, torch.float32)
        whole = slot.param is None or weight.ndim < 2 or dtype == torch.float32
        if whole or slot.parameter in done or slot.param is None:
            continue
        done.add(slot.parameter)
        part = weight.reshape(-1)[:SAMPLE]
        plus, minus = (torch.empty_like(part, dtype=dtype) for _ in range(2))
        direction.perturb(plus, part, slot.param, perturbation)
        direction.perturb(minus, part, slot.param, -perturbation)
        z = direction.values(part, slot.param)
        difference = plus.float() - minus.float()
        # A parameter counts by its size, not by its sample's.
        share = weight.numel() / part.numel()
        lost += share * (difference == 0).sum().item()
        gained += share * (difference * z).sum().item() / (2 * perturbation)
        seen += weight.numel()
    return None if not seen else Delivery(lost / seen, gained / seen)
