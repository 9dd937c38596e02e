"""The arguments of an update sweep: plain numbers, the same for every kernel.

The coefficients of one update are integer multiples of one power of two, |n_i| <= 2**13. A sum of up
to 2**11 signs times such integers stays below 2**24, so that every partial sum is exact in float32
(Gaussian: in float64): any order, any tile and any kernel give the same bits.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

MAX_TERMS = 1 << 11  # directions in one exact float32 sum


@dataclass(frozen=True, slots=True)
class DirectionSum:
    """Addresses and coefficients of a sum of N directions: sum_i `grid` * n[i] * z(steps[i], ks[i])."""

    seed: int
    gaussian: bool
    steps: npt.NDArray[np.int64]  # (N,)
    ks: npt.NDArray[np.int64]  # (N,) direction of its step
    n: npt.NDArray[np.float32]  # (N,) integers
    grid: float  # a power of two


@dataclass(frozen=True, slots=True)
class Rounding:
    """Key of the random bits with which bfloat16 and float16 weights are rounded."""

    seed: int
    step: int


def direction_sum(
    seed: int, gaussian: bool, addresses: list[tuple[int, int]], coefficients: list[float]
) -> DirectionSum:
    """Round `coefficients` (of the directions at `addresses`, (step, k) pairs) to a common grid.

    Raises ValueError for more than 2**11 directions or a coefficient that is not finite.
    """
    if len(coefficients) > MAX_TERMS:
        raise ValueError(
            f"{len(coefficients)} directions in one sum, at most {MAX_TERMS} are exact"
        )
    largest = max((abs(a) for a in coefficients), default=0.0)
    if not math.isfinite(largest):
        raise ValueError("a coefficient is not finite")
    # frexp: largest = m * 2**e with 0.5 <= m < 1, so largest / 2**(e - 13) < 2**13.
    # float32 has no normal number below 2**-126.
    grid = math.ldexp(1.0, max(math.frexp(largest)[1] - 13, -126)) if largest > 0 else 1.0
    address = np.array(addresses, dtype=np.int64).reshape(-1, 2)
    return DirectionSum(
        seed=seed,
        gaussian=gaussian,
        steps=address[:, 0].copy(),
        ks=address[:, 1].copy(),
        n=np.array([round(a / grid) for a in coefficients], dtype=np.float32),
        grid=grid,
    )
