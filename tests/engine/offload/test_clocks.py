from __future__ import annotations

from itertools import combinations
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.offload.clocks import Item, Look, Wait, edges, races, without_record, without_wait
from support.offload.programs import TRANSFERS, Writeback, program, trace

from zoft.engine.offload.operations import Op
from zoft.engine.offload.schedule import Transfer

SLOT = ("slot", 0)
FILL = Op("h2d", "upload", 0, writes=(SLOT,), records=("h2d", 1))
USE = Op("compute", "enter", 0, reads=(SLOT,), waits=(("h2d", 1),), records=("compute", 1))
REFILL = Op("h2d", "upload", 1, writes=(SLOT,), waits=(("compute", 1),))


def test_a_wait_a_queue_and_the_host_each_order() -> None:
    assert races([FILL, USE, REFILL]) == []
    own = Op("compute", "update", 0, reads=(SLOT,), writes=(SLOT,))
    assert races([FILL, USE, own]) == []
    assert races([FILL, Wait(("h2d", 1)), Look(SLOT)]) == []
    late = Op("d2h", "download", 0, reads=(SLOT,))
    assert races([FILL, Wait(("h2d", 1)), late]) == []  # submitted when the host knew


def test_what_nothing_orders_is_named() -> None:
    assert races([FILL, Look(SLOT)]) == [(FILL, Look(SLOT), SLOT)]
    items = [FILL, USE, REFILL]
    assert edges(items) == [(1, ("h2d", 1)), (2, ("compute", 1))]
    blind = without_wait(items, 1, ("h2d", 1))
    assert races(blind) == [(FILL, blind[1], SLOT)]
    forgetful = without_record(items, ("compute", 1))
    assert races(forgetful) == [(forgetful[1], forgetful[2], SLOT)]
    assert races(without_record([FILL, Wait(("h2d", 1)), Look(SLOT)], ("h2d", 1))) != []
    assert races(without_wait([FILL, Wait(("h2d", 1)), Look(SLOT)], 1, ("h2d", 1))) != []


def test_two_readers_need_no_order_but_both_come_before_the_writer() -> None:
    one = Op("compute", "enter", 0, reads=(SLOT,), records=("compute", 1))
    two = Op("d2h", "download", 0, reads=(SLOT,), records=("d2h", 1))
    write = Op("h2d", "upload", 0, writes=(SLOT,), waits=(("compute", 1),))
    assert races([one, two, write]) == [(two, write, SLOT)]


def test_an_event_that_nobody_recorded_yet_is_an_error() -> None:
    with pytest.raises(ValueError, match=r"\('h2d', 1\) is waited for before it is recorded"):
        races([USE, FILL])


def all_races(items: list[Item]) -> set[tuple[int, int]]:
    """The slow twin: the whole relation, by closure, and each pair of accesses."""
    before: list[set[int]] = []
    events: dict[object, int] = {}
    for i, item in enumerate(items):
        # What the host did itself, it did before it submitted the next.
        direct = [j for j in range(i) if isinstance(items[j], Wait | Look)]
        match item:
            case Wait(event):
                direct.append(events[event])
            case Op():
                direct += [events[event] for event in item.waits]
                same = [j for j in range(i) if getattr(items[j], "queue", None) == item.queue]
                direct += same[-1:]
                events[item.records] = i
        before.append({*direct, *(k for j in direct for k in before[j])})

    def accesses(item: Item) -> tuple[set[object], set[object]]:
        match item:
            case Op():
                return set(item.reads), set(item.writes)
            case Look(buffer):
                return {buffer}, set()
        return set(), set()

    found = set()
    for i, j in combinations(range(len(items)), 2):
        (r, w), (r2, w2) = accesses(items[i]), accesses(items[j])
        if (w & (r2 | w2) or w2 & r) and i not in before[j]:
            found.add((i, j))
    return found


@given(seed=st.integers(0, 2**32), transfer=st.sampled_from(TRANSFERS))
def test_it_agrees_with_the_whole_relation(seed: int, transfer: tuple[Transfer, Writeback]) -> None:
    random = Random(seed)
    items = trace(program(random, *transfer, 2))
    for _ in range(random.randint(0, 3)):  # waits taken away, so that there is something to find
        if edges(items):
            items = without_wait(items, *random.choice(edges(items)))
    every = {(id(items[i]), id(items[j])) for i, j in all_races(items)}
    nearest = {(id(a), id(b)) for a, b, _ in races(items)}
    assert nearest <= every
    assert bool(nearest) == bool(every)
