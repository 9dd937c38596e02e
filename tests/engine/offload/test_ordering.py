"""The waits of a schedule: all that are needed, and no kind that never is."""

from __future__ import annotations

from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.offload.clocks import edges, kind_of, races, without_record, without_wait
from support.offload.programs import ROADS, Program, Writeback, program, trace

from zoft.engine.offload.operations import Op
from zoft.engine.offload.schedule import Road, Schedule

# Who waits for the end of what, of each road. In each trace many a wait of these kinds is implied by
# others; every kind is there because in some trace nothing else orders what it orders.
FROZEN = {
    "memory": {"enter after upload", "upload after leave"},
    "file": {"enter after read", "read after leave"},
    "staged": {
        "enter after upload", "upload after leave", "upload after read", "read after upload",
    },
}  # fmt: skip
TUNED: dict[tuple[Road, Writeback], set[str]] = {
    ("memory", "device"): {
        "update after upload", "update after download", "download after update",
        "upload after download", "host after download",
    },
    ("memory", "host"): {
        "update after upload", "upload after master", "master after upload", "host after master",
    },
    ("file", "device"): {
        "update after read", "update after write", "write after update", "host after write",
    },
    ("staged", "device"): {
        "update after upload", "update after download", "download after update",
        "write after download", "download after write", "host after write",
    },
    ("staged", "host"): {
        "update after upload", "read after master", "master after read", "host after master",
    },
}  # fmt: skip


@given(seed=st.integers(0, 2**32), road=st.sampled_from(ROADS), length=st.integers(0, 12))
def test_conflicting_accesses_are_ordered(
    seed: int, road: tuple[Road, Writeback], length: int
) -> None:
    assert races(trace(program(Random(seed), *road, length=length))) == []


@pytest.mark.parametrize(("road", "writeback"), ROADS)
@pytest.mark.parametrize("slots", [1, 2, 3, 4])
@pytest.mark.parametrize("publishes", ["each step", "sometimes"])
def test_conflicting_accesses_of_steady_steps_are_ordered(
    road: Road, writeback: Writeback, slots: int, publishes: str
) -> None:
    """Steps of one pass or two, of fewer blocks than slots, as many and more."""
    for count in range(1, 8):
        for passes in (1, 2):
            step = [*[("pass", 0)] * passes, ("publish", 0)]
            actions = step * 3 + [("pass", 0)] * (publishes == "sometimes") + step
            if writeback is None:
                actions = [action for action in actions if action[0] == "pass"]
            blocks = tuple(range(0, 2 * count, 2))
            plan = Program(road, writeback, blocks, slots, 2, False, (*actions, ("pass", 0)))  # type: ignore[arg-type]
            assert races(trace(plan)) == []


@pytest.mark.parametrize(("road", "writeback"), ROADS)
def test_every_kind_of_wait_and_record_is_needed(road: Road, writeback: Writeback) -> None:
    needed: dict[str, bool] = {}
    recorded: dict[str, bool] = {}
    for seed in range(60):
        plan = program(Random(seed), road, writeback, length=5)
        if plan.poison:  # its waits are those of the operation that it stands before
            continue
        items = trace(plan)
        for i, event in edges(items):
            name = kind_of(items, i, event)
            if not needed.get(name):
                needed[name] = races(without_wait(items, i, event)) != []
        for item in items:
            if isinstance(item, Op) and item.records and not recorded.get(item.kind):
                recorded[item.kind] = races(without_record(items, item.records)) != []
    assert {name for name, is_needed in needed.items() if not is_needed} == set()
    assert {name for name, is_needed in recorded.items() if not is_needed} == set()
    assert set(needed) == FROZEN[road] | TUNED.get((road, writeback), set())


@pytest.mark.parametrize(("road", "writeback"), ROADS)
def test_one_fetch_and_at_most_one_way_home_for_a_block_and_pass(
    road: Road, writeback: Writeback
) -> None:
    """In passes one after the other; less where the slots hold all blocks or nothing changed."""
    fetch = "read" if road == "file" else "upload"
    home = "write" if road != "memory" else "download"
    for slots in (1, 2, 3):
        schedule = Schedule(range(5), slots, road, writeback)
        for step in range(6):
            ops = []
            if writeback:
                schedule.publish()
            for block in schedule.blocks:
                ops += [*schedule.enter(block), *schedule.leave(block)]
            if step == 0:
                continue  # the first pass fetches what the last one of another step would have
            for kind, count in ((fetch, 5), (home, 5 if writeback == "device" else 0)):
                assert sum(op.kind == kind for op in ops) == count, (slots, kind)
            assert sum(op.kind == "update" for op in ops) <= 5


def test_blocks_that_all_find_a_slot_are_fetched_once() -> None:
    schedule = Schedule([0, 2, 5], 3, "memory")
    ops = []
    for block in (0, 2, 5) * 3:
        ops += [*schedule.enter(block), *schedule.leave(block)]
    assert [op.block for op in ops if op.kind == "upload"] == [0, 2, 5]


def test_after_an_error_nothing_is_held() -> None:
    schedule = Schedule(range(4), 2, "memory", "device")
    schedule.enter(0)
    schedule.publish()
    schedule.enter(1)
    schedule.forget()
    fresh = schedule.enter(0)
    assert [op.kind for op in fresh if op.block == 0] == ["upload", "update", "download", "enter"]
    assert next(op for op in fresh if op.kind == "upload").waits == ()
    with pytest.raises(StopIteration):
        schedule.slot_of(3)


def test_what_it_cannot_plan_is_refused() -> None:
    with pytest.raises(ValueError, match="at least one slot"):
        Schedule([0], 0, "memory")
    with pytest.raises(ValueError, match="not in a file"):
        Schedule([0], 1, "file", "host")
    with pytest.raises(AssertionError, match="one version"):
        Schedule([0], 1, "file").publish()
    schedule = Schedule([0, 1], 1, "file")
    schedule.enter(0)
    with pytest.raises(AssertionError, match="nested deeper"):
        schedule.enter(1)
