"""What a run asks of a schedule, drawn at random, and the trace of operations that it plans for it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from random import Random
from typing import Literal

from support.offload.clocks import Item, Look, Wait
from support.offload.poison import poisoned
from zoft.engine.offload.operations import Buffer, Op
from zoft.engine.offload.schedule import Schedule, Transfer

ActionKind = Literal["pass", "broken", "visit", "update", "flush"]
Action = tuple[ActionKind, int]
Writeback = Literal["device", "host"] | None
# Of every transfer, who may write back; None: the blocks are frozen.
TRANSFERS: tuple[tuple[Transfer, Writeback], ...] = (
    ("memory", None), ("memory", "device"), ("memory", "host"),
    ("file", None), ("file", "device"),
    ("staged", None), ("staged", "device"), ("staged", "host"),
)  # fmt: skip


@dataclass(frozen=True)
class Program:
    """Settings of a schedule, and what happens to it. The number of an action is a block's place."""

    transfer: Transfer
    writeback: Writeback
    blocks: tuple[int, ...]  # with gaps, where resident blocks stand between
    slots: int
    stagings: int
    poison: bool
    actions: tuple[Action, ...]

    def schedule(self) -> Schedule:
        return Schedule(self.blocks, self.slots, self.transfer, self.writeback, self.stagings)


def program(random: Random, transfer: Transfer, writeback: Writeback, length: int = 8) -> Program:
    """Whole passes with and without an update for the most part, now and then anything else."""
    blocks = tuple(sorted(random.sample(range(10), random.randint(1, 7))))
    kinds: list[ActionKind] = random.choices(
        ["pass", "update", "broken", "visit", "flush"], [6, 4, 1, 2, 1], k=length
    )
    actions = tuple((kind, random.randrange(len(blocks))) for kind in kinds)
    if writeback is None:
        actions = tuple(action for action in actions if action[0] not in ("update", "flush"))
    slots, stagings = random.randint(1, 4), random.randint(1, 3)
    return Program(
        transfer, writeback, blocks, slots, stagings, random.random() < 0.5,
        (("pass", 0), *actions, ("pass", 0), *((("flush", 0),) if writeback else ())),
    )  # fmt: skip


def trace(program: Program) -> list[Item]:
    """All operations of the program in the order in which they are submitted, and the host's waits.

    What it moves is followed on the way: each `enter` and `leave` finds the block at the version that it
    must have, or AssertionError is raised. This order is one that the waits allow, so that a trace
    without races means the same in every other.
    """
    driver = Driver(program.schedule())
    items = (item for action in program.actions for item in driver.do(action))
    if program.poison:
        items = (x for i in items for x in (poisoned(i) if isinstance(i, Op) else [i]))
    return list(_checked(items))


class Driver:
    """Drives a schedule as the streamer does. In `until`, `enter` and `leave` say what they see."""

    def __init__(self, schedule: Schedule) -> None:
        self.schedule = schedule
        self._inside: tuple[int, int] | None = None  # a block and its version

    def do(self, action: Action) -> Iterator[Item]:
        kind, place = action
        blocks = self.schedule.blocks
        match kind:
            case "pass" | "broken":
                # One that is broken off leaves the block it is in when the next is entered.
                for block in blocks[: place + 1 if kind == "broken" else None]:
                    yield from self._enter(block)
                    if kind == "pass":
                        yield from self._leave()
            case "visit":
                yield from self._enter(blocks[place])
                yield from self._leave()
            case "update":
                yield from self.schedule.enqueue_update()
            case "flush":
                for block in self.schedule.stale:
                    yield from self._enter(block)
                    yield from self._leave()
                yield from map(Wait, self.schedule.write_backs)
                assert self.schedule.stale == []
                yield from (Look(("home", block)) for block in blocks)

    def _enter(self, block: int) -> Iterator[Item]:
        yield from self._leave()
        self._inside = (block, self.schedule.version)
        for op in self.schedule.enter(block):
            yield op if op.kind != "enter" else replace(op, until=self.schedule.version)

    def _leave(self) -> Iterator[Item]:
        if self._inside is not None:
            (block, version), self._inside = self._inside, None
            ops = self.schedule.leave(block)
            yield replace(ops[0], until=version)
            yield from ops[1:]


def _checked(items: Iterator[Item]) -> Iterator[Item]:
    """Pass the items on and follow (block, version) of every buffer; None is spoiled."""
    holds: dict[Buffer, tuple[int, int] | None] = {}

    def held(buffer: Buffer) -> tuple[int, int] | None:
        return holds.get(buffer, (buffer[1], 0) if buffer[0] == "home" else None)

    newest = 0
    for item in items:
        yield item
        if isinstance(item, Look):
            assert held(item.buffer) == (item.buffer[1], newest), item
        if not isinstance(item, Op):
            continue
        newest = max(newest, item.until)
        match item.kind:
            case "poison":
                holds[item.writes[0]] = None
            case "update" | "host_update":
                assert held(item.reads[0]) == (item.block, item.since), item
                holds[item.writes[0]] = (item.block, item.until)
            case "enter" | "leave":
                assert held(item.reads[0]) == (item.block, item.until), item
            case "read" | "upload" | "download" | "write":
                moved = held(item.reads[0])
                assert moved is not None, item
                assert moved[0] == item.block, item
                holds[item.writes[0]] = moved
