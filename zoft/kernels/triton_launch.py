"""What every Triton launch needs besides its kernel: the current device, and the Gaussian table."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from functools import cache

import torch
from torch import Tensor

from zoft.kernels import normal


def on(device: torch.device) -> AbstractContextManager[object]:
    """Triton launches on the current device, whatever its tensors are on."""
    return nullcontext() if device.type == "cpu" else torch.cuda.device(device)


@cache
def table_on(device: torch.device) -> Tensor:
    """The 65,536 Gaussian values as float32."""
    return torch.from_numpy(normal.table().copy()).to(device)
