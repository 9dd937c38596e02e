"""Vector clocks: which accesses of a trace no wait, record or queue puts in order.

Queues are processes that work off their operations in order; an event hands its queue's clock to whoever
waits for it. The host submits, so that all it waited for comes before what it submits then; that it
submitted one operation before another orders nothing. Nor does it here that `compute` runs in the host's
own thread when there is no GPU: a plan must not live on that.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace

from zoft.engine.offload.operations import Buffer, Event, Op


@dataclass(frozen=True)
class Wait:
    """The host stands still until the event."""

    event: Event


@dataclass(frozen=True)
class Look:
    """The host reads a buffer itself."""

    buffer: Buffer


Item = Op | Wait | Look
Clock = dict[str, int]  # of each process, how many of its accesses came before
Race = tuple[Item, Item, Buffer]


@dataclass
class _Accesses:
    """The last write of a buffer and the reads after it, each with its process and its own time there.

    Earlier ones need no look: where each of these comes after its predecessors, all do.
    """

    write: tuple[Item, str, int] | None = None
    reads: list[tuple[Item, str, int]] = field(default_factory=list)


def races(trace: Iterable[Item]) -> list[Race]:
    """Conflicting accesses (the same buffer, one of them a write) that may happen in either order.

    Of several conflicts between the same writes the nearest in the trace are named; none is named only
    if every pair is ordered. Raises ValueError for an event that is waited for before it is recorded.
    """
    clocks: dict[str, Clock] = defaultdict(lambda: defaultdict(int))
    events: dict[Event, Clock] = {}
    buffers: dict[Buffer, _Accesses] = defaultdict(_Accesses)
    found: list[Race] = []
    for item in trace:
        if isinstance(item, Wait):
            _join(clocks["submits"], _known(events, item.event))
            continue
        process = item.queue if isinstance(item, Op) else "submits"
        clock = clocks[process]
        _join(clock, clocks["submits"])
        for event in item.waits if isinstance(item, Op) else ():
            _join(clock, _known(events, event))
        clock[process] += 1
        if isinstance(item, Op) and item.records is not None:
            events[item.records] = dict(clock)
        written = item.writes if isinstance(item, Op) else ()
        read = item.reads if isinstance(item, Op) else (item.buffer,)
        this = (item, process, clock[process])
        for buffer in {*read, *written}:
            last = buffers[buffer]
            before = [] if last.write is None else [last.write]
            if buffer in written:
                before += last.reads
            found += [(other, item, buffer) for other, of, at in before if clock[of] < at]
            if buffer in written:
                buffers[buffer] = _Accesses(this)
            else:
                last.reads.append(this)
    return found


def edges(trace: Sequence[Item]) -> list[tuple[int, Event]]:
    """Every single wait: the index of the item that waits, and the event."""
    return [
        (i, event)
        for i, item in enumerate(trace)
        if not isinstance(item, Look)
        for event in (item.waits if isinstance(item, Op) else (item.event,))
    ]


def kind_of(trace: Sequence[Item], index: int, event: Event) -> str:
    """What waits there for the end of what."""
    item = trace[index]
    recorder = next(op.kind for op in trace if isinstance(op, Op) and op.records == event)
    return f"{item.kind if isinstance(item, Op) else 'host'} after {recorder}"


def without_wait(trace: Sequence[Item], index: int, event: Event) -> list[Item]:
    """The trace, but one item does not wait for the event."""
    item = trace[index]
    if isinstance(item, Wait):
        return [*trace[:index], *trace[index + 1 :]]
    assert isinstance(item, Op)
    left = replace(item, waits=tuple(wait for wait in item.waits if wait != event))
    return [*trace[:index], left, *trace[index + 1 :]]


def without_record(trace: Sequence[Item], event: Event) -> list[Item]:
    """The trace without the event: nobody records it, so nobody can wait for it."""
    left: list[Item] = []
    for item in trace:
        if isinstance(item, Op):
            waits = tuple(wait for wait in item.waits if wait != event)
            records = None if item.records == event else item.records
            left.append(replace(item, waits=waits, records=records))
        elif item != Wait(event):
            left.append(item)
    return left


def _known(events: dict[Event, Clock], event: Event) -> Clock:
    if event not in events:
        raise ValueError(f"{event} is waited for before it is recorded")
    return events[event]


def _join(clock: Clock, other: Clock) -> None:
    for process, time in other.items():
        clock[process] = max(clock[process], time)
