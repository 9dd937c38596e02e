"""The update rule of the tail: the gradient over its root mean square, which is kept factored.

Adafactor without momentum (Shazeer and Stern, arXiv 1804.04235): of a matrix' mean squared gradient only
the means of rows and of columns are kept, so the state is small beside the weights. The decay of step t
is 1 - t^-0.8; an update whose root mean square is above 1 is scaled down to 1. Weights of less than
float32 are rounded stochastically, by numbers that (seed, step, name) give.
"""

from __future__ import annotations

import zlib

import torch
from torch import Tensor

State = dict[str, Tensor]
TINY = 1e-30  # keeps means from zero, as in the paper


class FactoredRMS:
    """`lr` is in units of the weights. Call it once a step for each parameter; `state` is its state by
    the parameters' names and `row`, `column` or `whole`."""

    def __init__(self, seed: int) -> None:
        self.seed, self.state = seed, State()

    def move(self, name: str, parameter: Tensor, gradient: Tensor, step: int, lr: float) -> None:
        """Move the parameter by its gradient (float32)."""
        decay = 1 - step**-0.8
        square = gradient.square() + TINY
        if gradient.ndim < 2:
            root = self._mean(f"{name}.whole", square, decay).sqrt()
        else:
            row = self._mean(f"{name}.row", square.mean(-1), decay)
            column = self._mean(f"{name}.column", square.mean(-2), decay)
            scale = row.mean(-1, keepdim=True)[..., None]
            root = (row[..., None] * column[..., None, :] / scale).sqrt()
        update = gradient / root
        update /= update.square().mean().sqrt().clamp(min=1.0)
        wanted = parameter.detach().float() - lr * update
        parameter.data.copy_(self._rounded(wanted, parameter.dtype, name, step))

    def _mean(self, key: str, square: Tensor, decay: float) -> Tensor:
        kept = self.state.get(key)
        kept = square if kept is None else kept.lerp_(square, 1 - decay)
        self.state[key] = kept
        return kept

    def _rounded(self, wanted: Tensor, dtype: torch.dtype, name: str, step: int) -> Tensor:
        if dtype == torch.float32:
            return wanted
        drawn = torch.Generator(wanted.device)
        drawn.manual_seed(zlib.crc32(f"{self.seed} {step} {name}".encode()))
        chance = torch.rand(wanted.shape, generator=drawn, device=wanted.device)
        return stochastically(wanted, dtype, chance)


def stochastically(wanted: Tensor, dtype: torch.dtype, chance: Tensor) -> Tensor:
    """`wanted` in `dtype`: of the two numbers around it the nearer the more often, so that the mean over
    `chance`, uniform in [0, 1), is what was wanted."""
    nearest = wanted.to(dtype)
    off = wanted - nearest.float()
    towards = torch.where(off > 0, torch.inf, -torch.inf).to(dtype)
    other = torch.nextafter(nearest, towards)
    gap = (other.float() - nearest.float()).abs()
    return torch.where(chance * gap < off.abs(), other, nearest)
