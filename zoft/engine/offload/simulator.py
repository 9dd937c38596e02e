"""A simulator of plans: the time of a step, if each operation takes so many seconds."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

from zoft.engine.offload.operations import Event, Op, Queue


@dataclass(frozen=True, slots=True)
class Timeline:
    """Seconds. `busy`: a queue at work; `waiting`: one that had work and stood still for another queue.

    `finish` is when the last operation of any queue is done.
    """

    finish: float
    busy: Mapping[Queue, float]
    waiting: Mapping[Queue, float]


def simulate(ops: Iterable[Op], seconds: Callable[[Op], float], *, inline: bool) -> Timeline:
    """Run `ops`, in the order in which they are submitted, on queues that each do one at a time.

    `seconds` says how long each takes; that of "enter" includes the block's forward. With `inline`
    (no GPU) computing holds up the host: what comes after it is submitted when it is done. Otherwise
    the host is ahead of all queues. An event that nothing here records happened before.
    """
    submitted = 0.0
    free: defaultdict[Queue, float] = defaultdict(float)  # when a queue has done all it was given
    busy: defaultdict[Queue, float] = defaultdict(float)
    waiting: defaultdict[Queue, float] = defaultdict(float)
    happened: dict[Event, float] = {}
    for op in ops:
        able = max(free[op.queue], submitted)
        start = max([able, *(happened.get(event, 0.0) for event in op.waits)])
        took = seconds(op)
        waiting[op.queue] += start - able
        busy[op.queue] += took
        free[op.queue] = start + took
        if op.records is not None:
            happened[op.records] = free[op.queue]
        if inline and op.queue == "compute":
            submitted = free[op.queue]
    return Timeline(max(free.values(), default=0.0), dict(busy), dict(waiting))
