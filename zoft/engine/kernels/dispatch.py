"""Which kernels serve a tensor, by its device."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from importlib.util import find_spec
from typing import Protocol

import torch
from torch import Tensor

from zoft.engine.kernels.numerics.exact_sum import DirectionSum, Rounding
from zoft.recipe.sections.optimizers.rule import AdamConstants


class Kernels(Protocol):
    """The sweeps that every kernel module offers; see `reference.py` for shapes and meanings."""

    def perturb(
        self, out: Tensor, weight: Tensor, *, offset: int = 0, seed: int, step: int, param: int,
        k: int, scale: float, gaussian: bool,
    ) -> None: ...  # fmt: skip

    def perturb_pair(
        self, plus: Tensor, minus: Tensor, weight: Tensor, *, offset: int = 0, seed: int,
        step: int, param: int, k: int, scale: float, gaussian: bool,
    ) -> None: ...  # fmt: skip

    def perturb_each(
        self, out: Tensor, weight: Tensor, *, seed: int, step: int, param: int, ks: Tensor,
        scales: Tensor,
    ) -> None: ...  # fmt: skip

    def signs(
        self, out: Tensor, table: Tensor, *, seed: int, step: int, ks: Tensor
    ) -> None: ...  # fmt: skip

    def project(
        self, s: Tensor, x: Tensor, v: Tensor, which: Tensor, scales: Tensor,
        padded: Tensor | None = None,
    ) -> None: ...  # fmt: skip

    def spread(self, padded: Tensor, s: Tensor, which: Tensor, columns: int) -> None: ...

    def widen(self, out: Tensor, weight: Tensor, u: Tensor) -> None: ...

    def prefill(
        self, y: Tensor, s: Tensor, u: Tensor, which: Tensor, bias: Tensor | None = None
    ) -> None: ...  # fmt: skip

    def perturb_rows(
        self, out: Tensor, weight: Tensor, rows: Tensor, *, seed: int, step: int, param: int,
        k: int, scale: float, gaussian: bool,
    ) -> None: ...  # fmt: skip

    def update_dense(
        self, weight: Tensor, sums: Sequence[DirectionSum], *, param: int, decay: float,
        rounding: Rounding, adam: AdamConstants | None = None, moments: Sequence[Tensor] = (),
    ) -> None: ...  # fmt: skip

    def update_rank1(
        self, weight: Tensor, sums: Sequence[DirectionSum], *, param: int, decay: float,
        rounding: Rounding, adam: AdamConstants | None = None, moments: Sequence[Tensor] = (),
    ) -> None: ...  # fmt: skip


def kernels_for(device: torch.device) -> Kernels:
    """numba on a CPU, Triton on an accelerator where it is installed, else the literal torch kernels.

    Raises EnvironmentProblem where numba is kept from compiling.
    """
    return _kernels(device.type)


@cache
def _kernels(device: str) -> Kernels:
    # Imported here: numba takes a second to load, and Triton is not for CPUs.
    if device == "cpu":
        from zoft.engine.kernels.cpu.compiler import require_compiler

        require_compiler()
        from zoft.engine.kernels.cpu import sweeps as cpu

        return cpu
    if find_spec("triton"):
        from zoft.engine.kernels.triton import sweeps as triton

        return triton
    from zoft.engine.kernels import reference

    return reference
