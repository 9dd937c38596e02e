"""A direction z is a function of its address (run seed, step, k), never a stored tensor."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from zoft.engine.kernels.dispatch import kernels_for
from zoft.system.philox import PURPOSE_U, PURPOSE_V


@dataclass(frozen=True, slots=True)
class Direction:
    """Direction `k` of a step: one value of +-1 or N(0, 1) for each element of each parameter.

    With `rank1` a matrix has z = u v^T, u and v signs; everything else is dense all the same. Any
    slice of any parameter can be drawn at any time, in any order, with the same bits
    (docs/methods.md#random-numbers). `param` is the parameter's id, `scale` is in units of the weights.
    """

    seed: int
    step: int
    k: int
    gaussian: bool
    rank1: bool = False

    def perturb(
        self, out: Tensor, weight: Tensor, param: int, scale: float, offset: int = 0
    ) -> None:
        """out = weight + scale * z, rounded once to out's dtype; z dense.

        Both contiguous; `offset` is the number of the slice's first element in the parameter.
        """
        kernels_for(weight.device).perturb(
            out, weight, offset=offset, seed=self.seed, step=self.step, param=param, k=self.k,
            scale=scale, gaussian=self.gaussian,
        )  # fmt: skip

    def perturb_pair(
        self, plus: Tensor, minus: Tensor, weight: Tensor, param: int, scale: float
    ) -> None:
        """plus = weight + scale * z, minus = weight - scale * z in one sweep; z dense."""
        kernels_for(weight.device).perturb_pair(
            plus, minus, weight, seed=self.seed, step=self.step, param=param, k=self.k,
            scale=scale, gaussian=self.gaussian,
        )  # fmt: skip

    def perturb_rows(
        self, out: Tensor, weight: Tensor, rows: Tensor, param: int, scale: float
    ) -> None:
        """out[i] = weight[rows[i]] + scale * z, dense; weight (R, C), rows (n,) int64, out (n, C)."""
        kernels_for(weight.device).perturb_rows(
            out, weight, rows, seed=self.seed, step=self.step, param=param, k=self.k,
            scale=scale, gaussian=self.gaussian,
        )  # fmt: skip

    def values(self, weight: Tensor, param: int) -> Tensor:
        """z of the whole parameter as float32, for tests and diagnostics."""
        if self.rank1 and weight.ndim == 2:
            u, v = (self._factor(x, n, param) for x, n in zip("uv", weight.shape, strict=True))
            return torch.outer(u, v).to(weight.device)
        out = torch.empty(weight.shape, dtype=torch.float32, device=weight.device)
        self.perturb(out, torch.zeros_like(out), param, 1.0)
        return out

    def _factor(self, which: str, length: int, param: int) -> Tensor:
        out = torch.empty(length, dtype=torch.int8)
        purpose = {"u": PURPOSE_U, "v": PURPOSE_V}[which]
        table, ks = torch.tensor([[param, purpose, length, 0]]), torch.tensor([self.k])
        kernels_for(out.device).signs(out, table, seed=self.seed, step=self.step, ks=ks)
        return out.float()
