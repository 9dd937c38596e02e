from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from zoft.data.order import batch_rows, permutation

SEEDS = st.integers(0, 2**32 - 1)


@given(seed=SEEDS, n=st.integers(1, 50), batch_size=st.integers(1, 120), epochs=st.integers(1, 3))
def test_every_epoch_visits_each_row_once(seed: int, n: int, batch_size: int, epochs: int) -> None:
    steps = -(-epochs * n // batch_size)
    stream = np.concatenate([batch_rows(seed, s, batch_size, n) for s in range(1, steps + 1)])
    assert len(stream) == steps * batch_size
    for epoch in range(epochs):
        assert sorted(stream[epoch * n : (epoch + 1) * n]) == list(range(n))


@given(seed=SEEDS, n=st.integers(1, 50), size=st.integers(1, 40), step=st.integers(1, 1000))
def test_the_stream_does_not_depend_on_how_it_is_cut(
    seed: int, n: int, size: int, step: int
) -> None:
    halves = [batch_rows(seed, s, size, n) for s in (2 * step - 1, 2 * step)]
    assert np.array_equal(np.concatenate(halves), batch_rows(seed, step, 2 * size, n))


def test_a_batch_does_not_depend_on_what_was_asked_before() -> None:
    fresh = batch_rows(3, 500, 16, 100)
    for step in (1, 77, 1000):
        batch_rows(3, step, 16, 100)
    permutation.cache_clear()
    assert np.array_equal(batch_rows(3, 500, 16, 100), fresh)


def test_seeds_and_epochs_differ() -> None:
    orders = {tuple(permutation(seed, epoch, 40)) for seed in (0, 1) for epoch in (0, 1)}
    assert len(orders) == 4


def test_the_order_is_pinned() -> None:
    """A resumed run must meet the rows that the interrupted one would have met."""
    rows = batch_rows(0, 1, 12, 10)
    assert rows.dtype == np.int64
    assert rows.tolist() == [3, 2, 5, 8, 4, 0, 1, 6, 9, 7, 3, 4]


def test_a_late_step_of_a_long_run() -> None:
    assert batch_rows(7, 2**32 - 1, 16, 1000).shape == (16,)


@pytest.mark.parametrize(("step", "batch_size", "n"), [(0, 1, 1), (1, 0, 1), (1, 1, 0)])
def test_counts_below_one_are_refused(step: int, batch_size: int, n: int) -> None:
    with pytest.raises(ValueError, match=">= 1"):
        batch_rows(0, step, batch_size, n)
