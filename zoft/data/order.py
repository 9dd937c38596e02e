"""Which rows each step trains on: a function of (seed, step) alone, so a resume needs no state."""

from __future__ import annotations

from functools import lru_cache

import numpy as np
import numpy.typing as npt

from zoft.kernels.philox import PURPOSE_ORDER, draw64


def batch_rows(seed: int, step: int, batch_size: int, n: int) -> npt.NDArray[np.int64]:
    """Row numbers of a step's batch, shape (batch_size,); steps count from 1.

    Rows come from an endless stream of epochs, each a permutation of all `n` rows. A batch may
    straddle epochs, and may be larger than the data.
    """
    if step < 1 or batch_size < 1 or n < 1:
        raise ValueError(f"need step, batch_size, n >= 1, got {step}, {batch_size}, {n}")
    first = (step - 1) * batch_size
    epochs, places = np.divmod(np.arange(first, first + batch_size, dtype=np.int64), n)
    rows = np.empty(batch_size, np.int64)
    for epoch in range(int(epochs[0]), int(epochs[-1]) + 1):
        here = epochs == epoch
        rows[here] = permutation(seed, epoch, n)[places[here]]
    return rows


@lru_cache(maxsize=2)  # a batch touches one epoch, or two at a border
def permutation(seed: int, epoch: int, n: int) -> npt.NDArray[np.int64]:
    """The order of one epoch: the ranks of 64-bit draws; a tie keeps the rows' own order."""
    order = np.argsort(draw64(seed, epoch, PURPOSE_ORDER, n), kind="stable").astype(np.int64)
    order.setflags(write=False)  # shared by every caller
    return order
