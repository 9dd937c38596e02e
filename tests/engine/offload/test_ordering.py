"""The waits of a schedule: all that are needed, and no kind that never is."""

from __future__ import annotations

from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.offload.clocks import edges, kind_of, races, without_record, without_wait
from support.offload.programs import TRANSFERS, Program, Writeback, program, trace

from zoft.engine.offload.operations import Op
from zoft.engine.offload.schedule import Schedule, Transfer

# Who waits for the end of what, of each transfer. In each trace many a wait of these kinds is implied by
# others; every kind is there because in some trace nothing else orders what it orders.
FROZEN = {
    "memory": {"enter after upload", "upload after leave"},
    "file": {"enter after read", "read after leave"},
    "staged": {
        "enter after upload", "upload after leave", "upload after read", "read after upload",
    },
}  # fmt: skip
TUNED: dict[tuple[Transfer, Writeback], set[str]] = {
    ("memory", "device"): {
        "update after upload", "update after download", "download after update",
        "upload after download", "host after download",
    },
    ("memory", "host"): {
        "update after upload", "upload after host_update", "host_update after upload",
        "host after host_update",
    },
    ("file", "device"): {
        "update after read", "update after write", "write after update", "host after write",
    },
    ("staged", "device"): {
        "update after upload", "update after download", "download after update",
        "write after download", "download after write", "host after write",
    },
    ("staged", "host"): {
        "update after upload", "read after host_update", "host_update after read",
        "host after host_update",
    },
}  # fmt: skip


@given(seed=st.integers(0, 2**32), transfer=st.sampled_from(TRANSFERS), length=st.integers(0, 12))
def test_conflicting_accesses_are_ordered(
    seed: int, transfer: tuple[Transfer, Writeback], length: int
) -> None:
    assert races(trace(program(Random(seed), *transfer, length=length))) == []


@pytest.mark.parametrize(("transfer", "writeback"), TRANSFERS)
@pytest.mark.parametrize("slots", [1, 2, 3, 4])
@pytest.mark.parametrize("updates", ["each step", "sometimes"])
def test_conflicting_accesses_of_steady_steps_are_ordered(
    transfer: Transfer, writeback: Writeback, slots: int, updates: str
) -> None:
    """Steps of one pass or two, of fewer blocks than slots, as many and more."""
    for count in range(1, 8):
        for passes in (1, 2):
            step = [*[("pass", 0)] * passes, ("update", 0)]
            actions = step * 3 + [("pass", 0)] * (updates == "sometimes") + step
            if writeback is None:
                actions = [action for action in actions if action[0] == "pass"]
            blocks = tuple(range(0, 2 * count, 2))
            plan = Program(transfer, writeback, blocks, slots, 2, False, (*actions, ("pass", 0)))  # type: ignore[arg-type]
            assert races(trace(plan)) == []


@pytest.mark.parametrize(("transfer", "writeback"), TRANSFERS)
def test_every_kind_of_wait_and_record_is_needed(transfer: Transfer, writeback: Writeback) -> None:
    needed: dict[str, bool] = {}
    recorded: dict[str, bool] = {}
    for seed in range(60):
        plan = program(Random(seed), transfer, writeback, length=5)
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
    assert set(needed) == FROZEN[transfer] | TUNED.get((transfer, writeback), set())


@pytest.mark.parametrize(("transfer", "writeback"), TRANSFERS)
def test_one_fetch_and_at_most_one_way_home_for_a_block_and_pass(
    transfer: Transfer, writeback: Writeback
) -> None:
    """In passes one after the other; less where the slots hold all blocks or nothing changed."""
    fetch = "read" if transfer == "file" else "upload"
    home = "write" if transfer != "memory" else "download"
    for slots in (1, 2, 3):
        schedule = Schedule(range(5), slots, transfer, writeback)
        for step in range(6):
            ops = []
            if writeback:
                schedule.enqueue_update()
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


def test_what_it_cannot_plan_is_refused() -> None:
    with pytest.raises(ValueError, match="at least one slot"):
        Schedule([0], 0, "memory")
    with pytest.raises(ValueError, match="not in a file"):
        Schedule([0], 1, "file", "host")
    with pytest.raises(AssertionError, match="one version"):
        Schedule([0], 1, "file").enqueue_update()
    schedule = Schedule([0, 1], 1, "file")
    schedule.enter(0)
    with pytest.raises(AssertionError, match="nested deeper"):
        schedule.enter(1)
