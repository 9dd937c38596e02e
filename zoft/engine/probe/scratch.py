"""Memory for perturbed copies of weights: one arena, used like a stack, allocated once."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

ALIGN = 64  # bytes; BLAS results may depend on alignment


class Scratch:
    """Hands out uninitialised tensors; all of them are free again when the outermost user is done.

    The first pass through a model allocates as it goes and learns the high-water mark; from then on
    nothing is allocated (fresh pages cost more than the sweep that fills them).
    """

    def __init__(self, device: torch.device) -> None:
        self._arena = torch.empty(0, dtype=torch.uint8, device=device)
        self._views: dict[tuple[Any, ...], Tensor] = {}  # making a view takes microseconds
        self._top = 0
        self._peak = 0

    def take(self, shape: Sequence[int], dtype: torch.dtype) -> Tensor:
        """An uninitialised tensor, valid until `release` is called with an earlier `mark`."""
        key = (self._top, dtype, *shape)
        size = math.prod(shape) * dtype.itemsize
        begin, self._top = self._top, self._top + -(-size // ALIGN) * ALIGN
        self._peak = max(self._peak, self._top)
        if self._top > self._arena.numel():
            return torch.empty(tuple(shape), dtype=dtype, device=self._arena.device)
        found = self._views.get(key)
        if found is None:
            found = self._arena[begin : begin + size].view(dtype).view(tuple(shape))
            self._views[key] = found
        return found

    def mark(self) -> int:
        return self._top

    def release(self, mark: int) -> None:
        """Free everything taken since `mark`; grow the arena while nothing is in use."""
        self._top = mark
        if mark == 0 and self._peak > self._arena.numel():
            self._views.clear()
            self._arena = torch.empty(0, dtype=torch.uint8, device=self._arena.device)
            self._arena = torch.empty(self._peak, dtype=torch.uint8, device=self._arena.device)
