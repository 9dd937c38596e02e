"""Plans of copies and updates, with which a model of many blocks runs from few buffers (slots).

A block has a home (host memory, or a file) and is computed with in a slot of device memory. There are
three kinds of transfer between the two:

    memory   home -upload-> slot                       slot -download-> home
    file     home -read-> slot                         slot -write-> home        (the device is the CPU)
    staged   home -read-> staging -upload-> slot       slot -download-> staging -write-> home

An update reaches a tuned block in one of two ways. `writeback: device` applies it in the slot after
the next fetch, and writes the result back while the block computes; until then the home lacks it.
`writeback: host` applies it at the home, and in the slot of a block that has one; nothing is written
back.

Slots are filled ahead on the guess that blocks run in their order, again and again. A block that comes
out of turn is fetched when it is entered.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from zoft.engine.offload.buffers import BufferSlot, Home, Stagings
from zoft.engine.offload.operations import Buffer, Event, Kind, Op, Queue

Transfer = Literal["memory", "file", "staged"]


@dataclass
class Schedule:
    """Plans for `blocks`, the numbers of the streamed ones in the order in which the model runs them.

    `writeback` is None for frozen blocks; `version` counts updates. Pure bookkeeping: it allocates
    nothing and waits for nothing; the operations it returns are to be submitted in their order.
    """

    blocks: Sequence[int]
    slots: int
    transfer: Transfer
    writeback: Literal["device", "host"] | None = None
    stagings: int = 2
    version: int = 0

    def __post_init__(self) -> None:
        if self.slots < 1:
            raise ValueError("a model runs from at least one slot")
        if self.transfer == "file" and self.writeback == "host":
            raise ValueError("the host updates blocks in memory, not in a file")
        self._records: dict[Queue, int] = {}
        self._homes = {block: Home() for block in self.blocks}
        self._slots = [BufferSlot(number) for number in range(self.slots)]
        self._up = Stagings(0, [None] * self.stagings)
        self._down = Stagings(self.stagings, [None] * self.stagings)

    @property
    def stale(self) -> list[int]:
        """The blocks whose homes lack an update."""
        return [b for b in self.blocks if self._homes[b].version < self.version]

    @property
    def oldest(self) -> int:
        """The oldest version that a home or a slot still holds."""
        held = [slot.version for slot in self._slots if slot.block is not None]
        return min([*held, *(home.version for home in self._homes.values())], default=self.version)

    @property
    def write_backs(self) -> list[Event]:
        """The events of the last write to each home: none is under way once they have happened."""
        return [home.written for home in self._homes.values() if home.written is not None]

    def slot_of(self, block: int) -> int:
        """The slot that holds the block, or will once its operations are done."""
        return next(slot.number for slot in self._slots if slot.block == block)

    # -- what happens to a model --------------------------------------------------------------------

    def enqueue_update(self) -> list[Op]:
        """Begin a new version of all tuned blocks; with `writeback: host`, update their homes."""
        assert self.writeback is not None, "frozen blocks have one version"
        self.version += 1
        return [self._host_update(block) for block in self.blocks if self.writeback == "host"]

    def enter(self, block: int) -> list[Op]:
        """Plan what comes before the block computes: its fetch, its updates, and their write-back."""
        slot = next((s for s in self._slots if s.block == block), None)
        ops = []
        if slot is None:
            slot = self._victim(())
            assert slot is not None, "all slots are entered: blocks are nested deeper than slots"
            ops += self._fetch(block, slot)
        waits = () if slot.arrived is None else (slot.arrived,)
        slot.arrived = None
        if slot.version < self.version:
            update = self._op(
                "compute",
                "update",
                block,
                slot=slot.number,
                reads=(("slot", slot.number),),
                writes=(("slot", slot.number),),
                waits=waits + slot.free,
                records=self.writeback == "device",
                since=slot.version,
                until=self.version,
            )
            ops.append(update)
            slot.version, waits = self.version, ()
            if self.writeback == "device":
                assert update.records is not None
                ops += self._write_back(slot, update.records)
        slot.entered = True
        ops.append(
            self._op(
                "compute",
                "enter",
                block,
                slot=slot.number,
                reads=(("slot", slot.number),),
                waits=waits,
            )
        )
        return ops + self._prefetch(block, skip=0)

    def leave(self, block: int) -> list[Op]:
        """Plan what comes after the block computed: its slot is free, and the next block may come."""
        slot = next(s for s in self._slots if s.block == block)
        left = self._op(
            "compute",
            "leave",
            block,
            slot=slot.number,
            reads=(("slot", slot.number),),
            records=True,
        )
        assert left.records is not None
        slot.entered = False
        slot.free = (left.records, *(e for e in slot.free if e[0] != "compute"))
        return [left, *self._prefetch(block, skip=1)]

    # -- its parts ----------------------------------------------------------------------------------

    def _prefetch(self, block: int, *, skip: int) -> list[Op]:
        """Fill the slots with the blocks from the `skip`-th after `block` on."""
        at = self.blocks.index(block) + skip
        turns = min(self.slots, len(self.blocks))
        coming = [self.blocks[(at + i) % len(self.blocks)] for i in range(turns)]
        ops: list[Op] = []
        for expected in coming:
            if any(slot.block == expected for slot in self._slots):
                continue
            slot = self._victim(coming)
            if slot is None:
                break
            ops += self._fetch(expected, slot)
        return ops

    def _victim(self, kept: Sequence[int]) -> BufferSlot | None:
        """Choose a slot to fill: an empty one, else one whose block is not among `kept`."""
        free = [slot for slot in self._slots if not slot.entered and slot.block not in kept]
        return min(free, key=lambda slot: slot.block is not None, default=None)

    def _fetch(self, block: int, slot: BufferSlot) -> list[Op]:
        """Fill the slot with the block."""
        home = self._homes[block]
        # A block that never was entered may still be on its way in, but on the queue that comes next.
        free, slot.free = slot.free, ()
        slot.block, slot.version = block, home.version
        here, there = ("slot", slot.number), ("home", block)
        match self.transfer:
            case "memory":
                waits = free + ((home.written,) if home.written else ())
                keep = self.writeback == "host"  # the host must not write what is being read
                ops = [self._copy("h2d", "upload", slot, there, here, waits)]
                home.read = ops[-1].records if keep else None
            case "file":
                ops = [self._copy("disk", "read", slot, there, here, free)]
            case "staged":
                turn = self._up.take()
                staging, used = ("staging", self._up.first + turn), self._up.free[turn]
                waits = ((used,) if used else ()) + ((home.written,) if home.written else ())
                ops = [self._copy("disk", "read", slot, there, staging, waits)]
                assert ops[-1].records is not None
                home.read = ops[-1].records if self.writeback == "host" else None
                # What was written back from the slot went through the disk's queue before this read.
                waits = (*(e for e in free if e[0] == "compute"), ops[-1].records)
                ops.append(self._copy("h2d", "upload", slot, staging, here, waits))
                self._up.free[turn] = ops[-1].records
        slot.arrived = ops[-1].records
        return ops

    def _write_back(self, slot: BufferSlot, updated: Event) -> list[Op]:
        """Copy the slot's block to its home after the event `updated`."""
        assert slot.block is not None
        home = self._homes[slot.block]
        here, there = ("slot", slot.number), ("home", slot.block)
        match self.transfer:
            case "memory":
                ops = [self._copy("d2h", "download", slot, here, there, (updated,))]
            case "file":
                ops = [self._copy("disk", "write", slot, here, there, (updated,))]
            case "staged":
                turn = self._down.take()
                staging, used = ("staging", self._down.first + turn), self._down.free[turn]
                waits = (updated,) + ((used,) if used else ())
                ops = [self._copy("d2h", "download", slot, here, staging, waits)]
                assert ops[0].records is not None
                down = (ops[0].records,)
                ops.append(self._copy("disk", "write", slot, staging, there, down))
                self._down.free[turn] = ops[1].records
        assert ops[0].records is not None
        slot.free = (ops[0].records,)
        home.version, home.written = slot.version, ops[-1].records
        return ops

    def _host_update(self, block: int) -> Op:
        """Apply all updates to the block at its home, once nobody reads it there any more."""
        home, there = self._homes[block], ("home", block)
        op = self._op(
            "host",
            "host_update",
            block,
            reads=(there,),
            writes=(there,),
            waits=() if home.read is None else (home.read,),
            records=True,
            since=home.version,
            until=self.version,
        )
        home.version, home.written, home.read = self.version, op.records, None
        return op

    def _copy(
        self,
        queue: Queue,
        kind: Kind,
        slot: BufferSlot,
        source: Buffer,
        target: Buffer,
        waits: tuple[Event, ...],
    ) -> Op:
        assert slot.block is not None
        return self._op(
            queue,
            kind,
            slot.block,
            slot=slot.number,
            reads=(source,),
            writes=(target,),
            waits=waits,
            records=True,
        )

    def _op(
        self,
        queue: Queue,
        kind: Kind,
        block: int,
        *,
        slot: int = -1,
        reads: tuple[Buffer, ...] = (),
        writes: tuple[Buffer, ...] = (),
        waits: tuple[Event, ...] = (),
        records: bool = False,
        since: int = 0,
        until: int = 0,
    ) -> Op:
        """Make an operation, with a new event of its queue if it `records` one."""
        staging = next((number for name, number in reads + writes if name == "staging"), -1)
        event: Event | None = None
        if records:
            self._records[queue] = self._records.get(queue, 0) + 1
            event = (queue, self._records[queue])
        waits = tuple(wait for wait in waits if wait[0] != queue)  # a queue keeps its own order
        return Op(queue, kind, block, slot, staging, reads, writes, waits, event, since, until)
