"""Buffers as a plan knows them: what they hold, and the events that make them free again."""

from __future__ import annotations

from dataclasses import dataclass

from zoft.engine.offload.operations import Event


@dataclass(slots=True)
class BufferSlot:
    """A slot: the block in it, the event of its arrival, and in `free` what a refill has to wait for."""

    number: int
    block: int | None = None
    version: int = 0
    arrived: Event | None = None
    free: tuple[Event, ...] = ()
    entered: bool = False


@dataclass(slots=True)
class Home:
    """A block's home: its version, and the events of its last write and its last read."""

    version: int = 0
    written: Event | None = None
    read: Event | None = None


@dataclass(slots=True)
class Stagings:
    """Host buffers used in turn, numbered from `first`. `free`: what each one's refill waits for."""

    first: int
    free: list[Event | None]
    turn: int = 0

    def take(self) -> int:
        """Return the index of the buffer whose turn it is."""
        self.turn = (self.turn + 1) % len(self.free)
        return self.turn
