"""Numbers of every magnitude, and tensors compared bit for bit."""

from __future__ import annotations

import torch
from torch import Tensor


def numbers(*shape: int, dtype: torch.dtype = torch.float32, seed: int = 0) -> Tensor:
    """Normal numbers times powers of two from float16's subnormal range to well above 1."""
    generator = torch.Generator().manual_seed(seed)
    scale = torch.exp2(torch.randint(-30, 6, shape, generator=generator).float())
    return (torch.randn(shape, generator=generator) * scale).to(dtype)


def bits(tensor: Tensor) -> Tensor:
    """The same bytes as integers: NaN equals itself, and 0.0 is not -0.0."""
    return tensor.contiguous().view(
        {1: torch.int8, 2: torch.int16, 4: torch.int32}[tensor.itemsize]
    )


def assert_same(one: Tensor, other: Tensor) -> None:
    """Equal types and equal bits."""
    assert one.dtype == other.dtype
    assert torch.equal(bits(one), bits(other))
