from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st

from zoft.data.order import POOL, Order, permutation

SEEDS = st.integers(0, 2**32 - 1)
SIZES = {"n": st.integers(1, 90), "batch_size": st.integers(1, 40)}


def lengths_of(n: int, seed: int = 0) -> npt.NDArray[np.int64]:
    return np.random.default_rng(seed).integers(1, 30, n)


def padded(order: Order, steps: range, lengths: npt.NDArray[np.int64]) -> int:
    """Tokens that go through the model in these steps, padding included."""
    return sum(order.batch_size * int(lengths[order.rows(step)].max()) for step in steps)


@given(seed=SEEDS, n=st.integers(1, 50), batch_size=st.integers(1, 120), epochs=st.integers(1, 3))
def test_every_epoch_visits_each_row_once(seed: int, n: int, batch_size: int, epochs: int) -> None:
    order = Order(seed, batch_size, n)
    steps = -(-epochs * n // batch_size)
    stream = np.concatenate([order.rows(step) for step in range(1, steps + 1)])
    assert len(stream) == steps * batch_size
    for epoch in range(epochs):
        assert sorted(stream[epoch * n : (epoch + 1) * n]) == list(range(n))


@given(seed=SEEDS, n=st.integers(1, 50), size=st.integers(1, 40), step=st.integers(1, 1000))
def test_the_stream_does_not_depend_on_how_it_is_cut(
    seed: int, n: int, size: int, step: int
) -> None:
    halves = [Order(seed, size, n).rows(s) for s in (2 * step - 1, 2 * step)]
    assert np.array_equal(np.concatenate(halves), Order(seed, 2 * size, n).rows(step))


@pytest.mark.parametrize("lengths", [None, lengths_of(100)])
def test_a_batch_does_not_depend_on_what_was_asked_before(
    lengths: npt.NDArray[np.int64] | None,
) -> None:
    fresh = Order(3, 16, 100, lengths).rows(500)
    permutation.cache_clear()
    order = Order(3, 16, 100, lengths)
    for step in (1, 77, 1000, 499, 501):
        order.rows(step)
    assert np.array_equal(order.rows(500), fresh)


def test_seeds_and_epochs_differ() -> None:
    orders = {tuple(permutation(seed, epoch, 40)) for seed in (0, 1) for epoch in (0, 1)}
    assert len(orders) == 4


# -- grouped by length ------------------------------------------------------------------------


@given(seed=SEEDS, **SIZES, number=st.integers(0, 50))
def test_a_pool_holds_the_rows_that_it_would_hold_ungrouped(
    seed: int, n: int, batch_size: int, number: int
) -> None:
    plain, grouped = Order(seed, batch_size, n), Order(seed, batch_size, n, lengths_of(n))
    steps = range(number * grouped.pool + 1, (number + 1) * grouped.pool + 1)
    wanted, found = (np.concatenate([o.rows(s) for s in steps]) for o in (plain, grouped))
    assert sorted(found) == sorted(wanted)


@given(seed=SEEDS, **SIZES, number=st.integers(0, 50))
def test_no_pool_has_more_padding_than_ungrouped(
    seed: int, n: int, batch_size: int, number: int
) -> None:
    lengths = lengths_of(n, seed)
    plain, grouped = Order(seed, batch_size, n), Order(seed, batch_size, n, lengths)
    steps = range(number * grouped.pool + 1, (number + 1) * grouped.pool + 1)
    assert padded(grouped, steps, lengths) <= padded(plain, steps, lengths)


def test_most_of_the_padding_is_gone() -> None:
    lengths = lengths_of(1000)
    steps = range(1, 4 * POOL + 1)
    tokens = sum(int(lengths[Order(0, 16, 1000).rows(step)].sum()) for step in steps)
    plain = padded(Order(0, 16, 1000), steps, lengths) - tokens
    grouped = padded(Order(0, 16, 1000, lengths), steps, lengths) - tokens
    assert grouped < 0.1 * plain


@given(seed=SEEDS, **SIZES, start=st.integers(0, 200))
def test_grouping_seldom_shows_a_row_twice_in_one_batch(
    seed: int, n: int, batch_size: int, start: int
) -> None:
    """A pool meets two epochs at most: no row twice more than the data's size makes it."""
    order = Order(seed, batch_size, n, lengths_of(n))
    for step in range(start + 1, start + 5):
        assert np.bincount(order.rows(step)).max() <= batch_size // n + 2


def test_batches_are_visited_in_another_order_in_each_pool() -> None:
    lengths = np.arange(200)
    order = Order(0, 4, 200, lengths)
    visits = [
        tuple(np.argsort([order.rows(pool * POOL + i).max() for i in range(1, POOL + 1)]))
        for pool in range(4)
    ]
    assert len(set(visits)) == 4
    assert tuple(range(POOL)) not in visits


def test_equal_lengths_keep_the_streams_order() -> None:
    plain, grouped = Order(5, 4, 80), Order(5, 4, 80, np.ones(80, np.int64))
    batches = {tuple(plain.rows(step)) for step in range(1, 21)}
    assert {tuple(grouped.rows(step)) for step in range(1, 21)} == batches


def test_a_callers_mistake_does_not_spoil_the_order() -> None:
    with pytest.raises(ValueError, match="read-only"):
        Order(0, 2, 10, lengths_of(10)).rows(1)[0] = 3


# -- pinned -----------------------------------------------------------------------------------


def test_the_order_is_pinned() -> None:
    """A resumed run must meet the rows that the interrupted one would have met."""
    rows = Order(0, 12, 10).rows(1)
    assert rows.dtype == np.int64
    assert rows.tolist() == [3, 2, 5, 8, 4, 0, 1, 6, 9, 7, 3, 4]


def test_the_grouped_order_is_pinned() -> None:
    order = Order(0, 3, 10, np.array([5, 9, 1, 7, 7, 3, 2, 8, 6, 4]))
    assert order.rows(1).dtype == np.int64
    found = [order.rows(step).tolist() for step in range(1, 7)]
    assert found == [[3, 4, 1], [9, 0, 8], [2, 6, 5], [8, 3, 4], [7, 7, 1], [2, 6, 0]]


@pytest.mark.parametrize("lengths", [None, lengths_of(1000)])
def test_a_late_step_of_a_long_run(lengths: npt.NDArray[np.int64] | None) -> None:
    assert Order(7, 16, 1000, lengths).rows(2**32 - 1).shape == (16,)


@pytest.mark.parametrize(("step", "batch_size", "n"), [(0, 1, 1), (1, 0, 1), (1, 1, 0)])
def test_counts_below_one_are_refused(step: int, batch_size: int, n: int) -> None:
    with pytest.raises(ValueError, match=">= 1"):
        Order(0, batch_size, n).rows(step)


def test_lengths_of_other_data_are_refused() -> None:
    with pytest.raises(ValueError, match="lengths of 4 rows"):
        Order(0, 2, 4, np.array([1, 2, 3]))
