"""Operations, the steps of a plan: what is done, on which queue, to which buffers, after what.

A queue works off its operations in order. Two queues know of each other only through events: an
operation may record one, and one that waits for it begins when everything before the record is done.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Queue = Literal["host", "disk", "h2d", "compute", "d2h"]
# "enter" and "leave" stand around the block's own forward, which runs between them on `compute`.
Kind = Literal["read", "upload", "update", "enter", "leave", "download", "write", "host_update"]
Event = tuple[Queue, int]  # the n-th record of a queue
Buffer = tuple[str, int]  # ("home", block), ("slot", n) or ("staging", n)


@dataclass(frozen=True, slots=True)
class Op:
    """One operation. An update moves the weights from version `since` to version `until`.

    A version is the number of updates that the weights have in them.
    """

    queue: Queue
    kind: Kind
    block: int
    slot: int = -1
    staging: int = -1
    reads: tuple[Buffer, ...] = ()
    writes: tuple[Buffer, ...] = ()
    waits: tuple[Event, ...] = ()
    records: Event | None = None
    since: int = 0
    until: int = 0

    def __str__(self) -> str:
        return f"{self.queue}: {self.kind} {self.block}"
