"""A direction z is a function of its address (run seed, step, k), never a stored tensor."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from zoft.kernels.dispatch import kernels_for


@dataclass(frozen=True, slots=True)
class Direction:
    """Direction `k` of a step: one value of +-1 or N(0, 1) for each element of each parameter.

    Any slice of any parameter can be drawn at any time, in any order, with the same bits (METHODS
    section 1). `param` is the parameter's id, `scale` is in units of the weights.
    """

    seed: int
    step: int
    k: int
    gaussian: bool

    def perturb(
        self, out: Tensor, weight: Tensor, param: int, scale: float, offset: int = 0
    ) -> None:
        """out = weight + scale * z, rounded once to out's dtype.

        Both contiguous; `offset` is the number of the slice's first element in the parameter.
        """
        kernels_for(weight.device).perturb(
            out,
            weight,
            offset=offset,
            seed=self.seed,
            step=self.step,
            param=param,
            k=self.k,
            scale=scale,
            gaussian=self.gaussian,
        )

    def perturb_rows(
        self, out: Tensor, weight: Tensor, rows: Tensor, param: int, scale: float
    ) -> None:
        """out[i] = weight[rows[i]] + scale * z; weight (R, C), rows (n,) int64, out (n, C)."""
        kernels_for(weight.device).perturb_rows(
            out,
            weight,
            rows,
            seed=self.seed,
            step=self.step,
            param=param,
            k=self.k,
            scale=scale,
            gaussian=self.gaussian,
        )

    def values(self, weight: Tensor, param: int) -> Tensor:
        """z of the whole parameter as float32, for tests and diagnostics."""
        out = torch.empty(weight.shape, dtype=torch.float32, device=weight.device)
        self.perturb(out, torch.zeros_like(out), param, 1.0)
        return out
