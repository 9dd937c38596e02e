"""What every Triton launch needs besides its kernel: the current device, and the Gaussian table."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from functools import cache

import torch
from torch import Tensor

from zoft.engine.kernels.numerics import gaussian as normal
from zoft.system.accelerator import current

# Compiled with these, see triton.py. 64 lanes for what follows a tile's calls, 128 for the rest.
SWEEP = {"num_warps": 2, "enable_fp_fusion": False}
PRODUCT = {"num_warps": 4, "enable_fp_fusion": False}


def on(device: torch.device) -> AbstractContextManager[object]:
    """Triton launches on the current device, whatever its tensors are on."""
    return nullcontext() if device.type == "cpu" else current(device)


def require_contiguous(*tensors: Tensor | None) -> None:
    """Assert what every kernel here takes for granted: elements in memory's order, without gaps."""
    for tensor in tensors:
        assert tensor is None or tensor.is_contiguous(), "a kernel reads contiguous tensors only"


@cache
def table_on(device: torch.device) -> Tensor:
    """The 65,536 Gaussian values as float32."""
    return torch.from_numpy(normal.table().copy()).to(device)
