"""Whatever overtakes what: the same bytes are computed with, and the same come home."""

from __future__ import annotations

from dataclasses import replace
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.offload.clocks import edges, kind_of, races, without_wait
from support.offload.interleaving import Machine, plainly
from support.offload.programs import TRANSFERS, Writeback, program, trace

from zoft.engine.offload.schedule import Transfer

SEEDS = st.integers(0, 2**64)


def equal(seed: int) -> None:
    random = Random(seed)
    items = trace(program(random, *random.choice(TRANSFERS)))
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


@pytest.mark.parametrize("transfer", TRANSFERS, ids=lambda transfer: f"{transfer[0]}-{transfer[1]}")
def test_without_a_wait_some_order_gives_other_bytes(transfer: tuple[Transfer, Writeback]) -> None:
    """So that equal bytes mean something: what the checker finds is found in the bytes."""
    seen: dict[str, bool] = {}
    for seed in range(60):
        items = trace(replace(program(Random(seed), *transfer, length=5), poison=True))
        right = plainly(items)
        for i, event in edges(items):
            name = kind_of(items, i, event)
            if not seen.get(name):
                torn = without_wait(items, i, event)
                seen[name] = bool(races(torn)) and any(
                    Machine().run(torn, Random(n)) != right for n in range(40)
                )
    # What these keep from going home in halves goes there again, whole, before it is read.
    harmless = {"update after download", "update after write"}
    assert {name for name, is_seen in seen.items() if not is_seen} == harmless & set(seen)
