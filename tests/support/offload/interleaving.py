"""Works off a trace in a random order that its queues and waits allow, on real bytes.

Operations take time: a copy is half done for a while, and others go on meanwhile. `compute` is a queue
as well, so that the host runs ahead of it, as on a GPU.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from functools import cache
from random import Random
from zlib import crc32

from support.offload.clocks import Item, Look, Wait
from zoft.engine.offload.operations import Buffer, Event, Op

SIZE = 16  # bytes of a block
SPOILED = bytes([0xFF]) * SIZE


def initial(block: int) -> bytes:
    return bytes((block * 31 + i * 7 + 1) % 251 for i in range(SIZE))


def updated(block: int, content: bytes, version: int) -> bytes:
    """What update number `version` makes of a block; the order of updates matters."""
    return bytes((3 * byte + 5 * version + block + 1) % 251 for byte in content)


class Machine:
    """Buffers, what computing has seen of them so far (`seen`), and what the host has (`looked`)."""

    def __init__(self) -> None:
        self.buffers: dict[Buffer, bytes] = {}
        self.seen, self.looked = 0, 0
        self.done: set[Event] = set()

    def holds(self, buffer: Buffer) -> bytes:
        return self.buffers.get(buffer, initial(buffer[1]) if buffer[0] == "home" else SPOILED)

    def run(self, trace: Sequence[Item], random: Random) -> tuple[int, int]:
        """The hashes of all that was computed with and of all that the host read, once all is done."""
        queues: dict[str, deque[Op]] = {}
        running: dict[str, Iterator[None]] = {}
        ahead = deque(trace)
        # Some queues are far slower than others, so that rare overtakings do happen.
        speed = {q: random.choice((1, 1, 30)) for q in ("submits", *_queues(trace))}
        while ahead or running or any(queues.values()):
            able = [q for q, ops in queues.items() if q in running or self._begins(ops)]
            if ahead and (not isinstance(ahead[0], Wait) or ahead[0].event in self.done):
                able.append("submits")
            queue = random.choices(able, [speed[q] for q in able])[0]
            if queue == "submits":
                item = ahead.popleft()
                if isinstance(item, Op):
                    queues.setdefault(item.queue, deque()).append(item)
                elif isinstance(item, Look):
                    self.look(item.buffer)
                continue
            if queue not in running:
                running[queue] = self.work(queues[queue].popleft())
            if next(running[queue], self) is self:
                del running[queue]
        return self.seen, self.looked

    def _begins(self, ops: deque[Op]) -> bool:
        return bool(ops) and self.done.issuperset(ops[0].waits)

    def look(self, buffer: Buffer) -> None:
        self.looked = crc32(self.holds(buffer), self.looked)

    def work(self, op: Op) -> Iterator[None]:
        """Do the operation; it yields in the middle."""
        half = SIZE // 2
        match op.kind:
            case "enter" | "leave":
                self.seen = crc32(self.holds(op.reads[0])[:half], self.seen)
                yield
                self.seen = crc32(self.holds(op.reads[0])[half:], self.seen)
            case "update" | "host_update":
                content = self.holds(op.reads[0])
                for version in range(op.since + 1, op.until + 1):
                    content = updated(op.block, content, version)
                yield
                self.buffers[op.writes[0]] = content
            case _:
                for part in (slice(0, half), slice(half, None)):
                    source = self.holds(op.reads[0]) if op.reads else SPOILED
                    target = bytearray(self.holds(op.writes[0]))
                    target[part] = source[part]
                    self.buffers[op.writes[0]] = bytes(target)
                    yield
        if op.records is not None:
            self.done.add(op.records)


@cache
def at(block: int, version: int) -> bytes:
    """A block with so many updates in it."""
    return updated(block, at(block, version - 1), version) if version else initial(block)


def plainly(trace: Sequence[Item]) -> tuple[int, int]:
    """The same hashes of a model that is all in memory: an update moves every block at once."""
    seen, looked, newest = 0, 0, 0
    for item in trace:
        if isinstance(item, Op):
            newest = max(newest, item.until)
            if item.kind in ("enter", "leave"):
                seen = crc32(at(item.block, item.until), seen)
        elif isinstance(item, Look):
            looked = crc32(at(item.buffer[1], newest), looked)
    return seen, looked


def _queues(trace: Sequence[Item]) -> set[str]:
    return {item.queue for item in trace if isinstance(item, Op)}
