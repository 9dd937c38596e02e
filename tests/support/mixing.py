"""Modules that do not keep the rows of a batch apart, which probes for each example ask for."""

from __future__ import annotations

from torch import Tensor, nn


class BatchMean(nn.Module):
    """Adds the mean over all rows, as a module with a capacity to share may."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x: Tensor) -> Tensor:
        mixed: Tensor = self.inner(x) + x.mean(0, keepdim=True)
        return mixed


class TimeFirst(nn.Module):
    """Hands on (T, R, C): the rows do not lead any more; where T is a multiple of R, nothing tells."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x: Tensor) -> Tensor:
        handed: Tensor = self.inner(x.transpose(0, 1)).transpose(0, 1)
        return handed
