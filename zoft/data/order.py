"""Which rows each step trains on: a function of (seed, step) alone, so a resume needs no state."""

from __future__ import annotations

from functools import lru_cache

import numpy as np
import numpy.typing as npt

from zoft.system.philox import PURPOSE_ORDER, draw64

RowNumbers = npt.NDArray[np.int64]

POOL = 50  # batches that are grouped by length together


class Order:
    """The row numbers of every step's batch.

    Rows come from an endless stream of epochs, each a permutation of all `n` rows. A batch may
    straddle epochs, and may be larger than the data.

    With the rows' `lengths` (n,), rows of like length share a batch: the stream is read a pool of
    POOL batches at a time, or as many as the data fill; a pool is sorted by length and cut into
    batches, which are visited in random order. So only the order within a pool is another.
    """

    def __init__(
        self, seed: int, batch_size: int, n: int, lengths: npt.NDArray[np.int64] | None = None
    ) -> None:
        if batch_size < 1 or n < 1:
            raise ValueError(f"need batch_size, n >= 1, got {batch_size}, {n}")
        if lengths is not None and lengths.shape != (n,):
            raise ValueError(f"need the lengths of {n} rows, got the shape {lengths.shape}")
        self.seed, self.batch_size, self.n, self.lengths = seed, batch_size, n, lengths
        # A pool beyond an epoch would hold a row many times, all in the same batch.
        self.pool = min(POOL, max(1, n // batch_size))
        self._latest: tuple[int, RowNumbers] = (-1, np.empty((0, batch_size), np.int64))

    def rows(self, step: int) -> RowNumbers:
        """Row numbers of a step's batch, shape (batch_size,); steps count from 1."""
        if step < 1:
            raise ValueError(f"need step >= 1, got {step}")
        if self.lengths is None:
            return self._stream(step - 1, 1)
        number, place = divmod(step - 1, self.pool)
        if self._latest[0] != number:
            self._latest = (number, self._grouped(number, self.lengths))
        batch: RowNumbers = self._latest[1][place]
        return batch

    def _grouped(self, number: int, lengths: npt.NDArray[np.int64]) -> RowNumbers:
        """The batches of one pool in the order of their visits, (pool, batch_size)."""
        rows = self._stream(number * self.pool, self.pool)
        by_length = rows[np.argsort(lengths[rows], kind="stable")]
        draws = draw64(self.seed, number, PURPOSE_ORDER, self.pool, k=1)
        batches = by_length.reshape(self.pool, -1)[np.argsort(draws, kind="stable")]
        batches.setflags(write=False)  # shared by every caller
        return batches

    def _stream(self, first: int, batches: int) -> RowNumbers:
        """So many batches of the stream, from batch `first` on: (batches * batch_size,)."""
        begin, end = first * self.batch_size, (first + batches) * self.batch_size
        epochs, places = np.divmod(np.arange(begin, end, dtype=np.int64), self.n)
        rows = np.empty(end - begin, np.int64)
        for epoch in range(int(epochs[0]), int(epochs[-1]) + 1):
            here = epochs == epoch
            rows[here] = permutation(self.seed, epoch, self.n)[places[here]]
        return rows


@lru_cache(maxsize=2)  # a batch or pool touches one epoch, or two at a border
def permutation(seed: int, epoch: int, n: int) -> RowNumbers:
    """The order of one epoch: the ranks of 64-bit draws; a tie keeps the rows' own order."""
    order = np.argsort(draw64(seed, epoch, PURPOSE_ORDER, n), kind="stable").astype(np.int64)
    order.setflags(write=False)  # shared by every caller
    return order
