"""Whatever overtakes what: the same bytes are computed with, and the same come home."""

from __future__ import annotations

from dataclasses import replace
from random import Random

import pytest
from clocks import Item, edges, races, without_wait
from interleaving import Machine, plainly
from hypothesis import given, settings
from hypothesis import strategies as st
from programs import ROADS, program, trace

SEEDS = st.integers(0, 2**64)


def equal(seed: int) -> None:
    random = Random(seed)
    items = trace(program(random, *random.choice(ROADS)))
    assert Machine().run(items, random) == plainly(items)


@settings(max_examples=400)
@given(seed=SEEDS)
def test_random_orders_give_equal_bytes(seed: int) -> None:
    equal(seed)


@pytest.mark.campaign
@settings(max_examples=10_000)
@given(seed=SEEDS)
def test_ten_thousand_random_orders_give_equal_bytes(seed: int) -> None:
    equal(seed)


def broken(items: list[Item], random: Random) -> list[Item]:
    """The trace without one wait that is needed."""
    candidates = edges(items)
    random.shuffle(candidates)
    return next(
        left for i, event in candidates if races(left := without_wait(items, i, event)) != []
    )


@pytest.mark.parametrize("road", ROADS, ids=lambda road: f"{road[0]}-{road[1]}")
def test_without_a_wait_some_order_gives_other_bytes(road: tuple) -> None:  # type: ignore[type-arg]
    """So that equal bytes mean something: a lost wait is seen in the bytes, not only by the checker."""
    for seed in range(12):
        random = Random(seed)
        items = trace(replace(program(random, *road, length=5), poison=True))
        torn = broken(items, random)
        assert any(Machine().run(torn, Random(n)) != plainly(items) for n in range(1000)), seed
