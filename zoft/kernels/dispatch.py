"""Which kernels serve a tensor: numba on a CPU, the literal torch sweeps elsewhere."""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor

from zoft.kernels.terms import Adam, Rounding, Terms


class Kernels(Protocol):
    """The sweeps that every kernel module offers; see `cpu.py` for shapes and meanings."""

    def perturb(
        self, out: Tensor, weight: Tensor, *, offset: int = 0, seed: int, step: int, param: int,
        k: int, scale: float, gaussian: bool,
    ) -> None: ...  # fmt: skip

    def perturb_rows(
        self, out: Tensor, weight: Tensor, rows: Tensor, *, seed: int, step: int, param: int,
        k: int, scale: float, gaussian: bool,
    ) -> None: ...  # fmt: skip

    def add_directions(
        self, weight: Tensor, terms: Terms, *, param: int, decay: float, rounding: Rounding
    ) -> None: ...

    def radazo_full(
        self, weight: Tensor, exp_avg: Tensor, exp_avg_sq: Tensor, terms: Terms, adam: Adam, *,
        param: int, decay: float, rounding: Rounding,
    ) -> None: ...  # fmt: skip

    def radazo_window(
        self, weight: Tensor, window: list[Terms], adam: Adam, *, param: int, decay: float,
        rounding: Rounding,
    ) -> None: ...  # fmt: skip


def kernels_for(device: torch.device) -> Kernels:
    """The kernels of a device. Imported here: compiling and loading numba costs a second."""
    if device.type == "cpu":
        from zoft.kernels import cpu

        return cpu
    from zoft.kernels import reference

    return reference
