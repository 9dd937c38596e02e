from __future__ import annotations

from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from zoft.engine.offload.operations import Op
from zoft.engine.offload.schedule import Schedule
from zoft.engine.offload.simulator import Timeline, simulate

Cost = Callable[[Op], float]
INLINE = pytest.mark.parametrize("inline", [False, True])


def passes(schedule: Schedule, count: int, update: bool = False) -> list[Op]:
    ops = []
    for _ in range(count):
        if update:
            ops += schedule.enqueue_update()
        for block in schedule.blocks:
            ops += [*schedule.enter(block), *schedule.leave(block)]
    return ops


def costs(**seconds: float) -> Cost:
    return lambda op: seconds.get(op.kind, 0.0)


def a_pass(ops_of: Callable[[int], list[Op]], cost: Cost, inline: bool = True) -> float:
    """Seconds of computing of one more pass, standing still included, once everything has settled."""
    lines = [simulate(ops_of(n), cost, inline=inline) for n in (10, 20)]
    few, many = (line.busy["compute"] + line.waiting["compute"] for line in lines)
    return (many - few) / 10


def test_two_operations_on_a_queue_and_one_that_waits() -> None:
    ops = [
        Op("h2d", "upload", 0, records=("h2d", 1)),
        Op("h2d", "upload", 1, records=("h2d", 2)),
        Op("compute", "enter", 0, waits=(("h2d", 1),)),
    ]
    line = simulate(ops, costs(upload=2.0, enter=3.0), inline=False)
    assert line == Timeline(5.0, {"h2d": 4.0, "compute": 3.0}, {"h2d": 0.0, "compute": 2.0})


def test_computing_without_a_gpu_holds_up_the_host() -> None:
    ops = [Op("compute", "enter", 0), Op("h2d", "upload", 1)]
    cost = costs(enter=3.0, upload=2.0)
    assert simulate(ops, cost, inline=False).finish == 3.0
    assert simulate(ops, cost, inline=True) == Timeline(
        5.0, {"compute": 3.0, "h2d": 2.0}, {"compute": 0.0, "h2d": 0.0}
    )


def test_an_event_from_before_has_happened_and_nothing_takes_no_time() -> None:
    op = Op("compute", "enter", 0, waits=(("h2d", 7),))
    assert simulate([op], costs(enter=1.0), inline=True).finish == 1.0
    assert simulate([], costs(), inline=True) == Timeline(0.0, {}, {})


@INLINE
@pytest.mark.parametrize("slots", [2, 3])
def test_two_slots_hide_fetches_behind_computing(slots: int, inline: bool) -> None:
    def ops(count: int) -> list[Op]:
        return passes(Schedule(range(6), slots, "file"), count)

    assert a_pass(ops, costs(read=0.9, enter=1.0), inline) == pytest.approx(6.0)
    assert a_pass(ops, costs(read=2.0, enter=1.0), inline) == pytest.approx(12.0)  # reading alone


def test_one_slot_hides_nothing() -> None:
    def ops(count: int) -> list[Op]:
        return passes(Schedule(range(6), 1, "file"), count)

    assert a_pass(ops, costs(read=2.0, enter=1.0)) == pytest.approx(18.0)


def test_a_third_slot_hides_the_update_behind_the_copies() -> None:
    """Two do where computing takes longest: what goes home goes while its own block computes."""

    def ops(slots: int) -> Callable[[int], list[Op]]:
        return lambda count: passes(Schedule(range(6), slots, "memory", "device"), count, True)

    computing = costs(upload=0.9, download=0.9, update=0.1, enter=0.9)
    copying = costs(upload=1.0, download=1.0, update=0.5, enter=0.2)
    assert a_pass(ops(2), computing) == pytest.approx(6 * (0.1 + 0.9))
    assert a_pass(ops(2), copying) == pytest.approx(6 * (1.0 + 0.5 + 1.0) / 2)
    assert a_pass(ops(3), copying) == pytest.approx(6 * 1.0)


@given(
    reads=st.floats(0.1, 3), ups=st.floats(0.1, 3), slots=st.integers(2, 4), inline=st.booleans()
)
def test_no_queue_is_overtaken(reads: float, ups: float, slots: int, inline: bool) -> None:
    """A pass takes at least what its busiest queue does; a slot more never makes it longer."""

    def ops(slots: int) -> Callable[[int], list[Op]]:
        return lambda count: passes(Schedule(range(5), slots, "staged"), count)

    cost = costs(read=reads, upload=ups, enter=1.0)
    now = a_pass(ops(slots), cost, inline)
    assert now >= 5 * max(reads, ups, 1.0) - 1e-9
    assert a_pass(ops(slots - 1), cost, inline) >= now - 1e-9
