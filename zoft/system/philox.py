"""Philox4x32-10: the counter-based generator behind every random number of a run.

Source: Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", SC'11. One call maps a counter
of four 32-bit words and a key of two to four 32-bit words. Ours are

    key     = (run seed, step)
    counter = (block low, block high, parameter id, purpose * 2**24 + k)

so that any element of any direction is a function of its address alone. This file is the numpy
version, for small draws and as the twin of the compiled ones.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

Words = npt.NDArray[np.uint32]

# How random words map to directions (1: engine/kernels/cpu/probe.py); stands in every journal's header.
# 2 is written where a tensor of experts has rank-1 z, a pair of vectors for each: in 1, it was dense.
LAYOUT, LAYOUT_OF_EXPERTS = 1, 2
LAYOUTS = (LAYOUT, LAYOUT_OF_EXPERTS)

PURPOSE_DENSE = 0
PURPOSE_U = 1
PURPOSE_V = 2
PURPOSE_ROUNDING = 3
PURPOSE_ORDER = 4  # 5 is free
PURPOSE_TEMPLATE = 6
PURPOSE_SHARE = 7

M0, M1 = 0xD2511F53, 0xCD9E8D57  # multipliers
W0, W1 = 0x9E3779B9, 0xBB67AE85  # key increments (golden ratio, sqrt(3) - 1)
ROUNDS = 10


def last_word(purpose: int, k: int) -> int:
    """The counter's fourth word. `k` numbers the directions (or rows) of one step."""
    if not 0 <= k < 1 << 24:
        raise ValueError(f"k must lie in [0, 2**24), got {k}")
    return purpose << 24 | k


def philox4x32(counter: npt.ArrayLike, key: tuple[int, int]) -> Words:
    """Ten rounds over counters of shape (..., 4); returns uint32 of the same shape."""
    c = np.asarray(counter, dtype=np.uint64)
    c0, c1, c2, c3 = (c[..., i] for i in range(4))
    k0, k1 = key
    low = np.uint64(0xFFFFFFFF)
    for _ in range(ROUNDS):
        p0, p1 = np.uint64(M0) * c0, np.uint64(M1) * c2
        c0, c1, c2, c3 = (
            (p1 >> np.uint64(32)) ^ c1 ^ np.uint64(k0),
            p1 & low,
            (p0 >> np.uint64(32)) ^ c3 ^ np.uint64(k1),
            p0 & low,
        )
        k0, k1 = (k0 + W0) & 0xFFFFFFFF, (k1 + W1) & 0xFFFFFFFF
    return np.stack([c0, c1, c2, c3], axis=-1).astype(np.uint32)


def draw64(seed: int, step: int, purpose: int, n: int, *, k: int = 0) -> npt.NDArray[np.uint64]:
    """`n` 64-bit draws for (seed, step, purpose, k): words 0 and 1, then 2 and 3 of each call."""
    blocks = np.arange((n + 1) // 2, dtype=np.uint64)
    counter = np.zeros((len(blocks), 4), np.uint64)
    counter[:, 0], counter[:, 1] = blocks & np.uint64(0xFFFFFFFF), blocks >> np.uint64(32)
    counter[:, 3] = last_word(purpose, k)
    words = philox4x32(counter, (seed, step)).astype(np.uint64).reshape(-1, 2)
    return (words[:, 0] | words[:, 1] << np.uint64(32))[:n]
