"""What a run asks of a schedule, drawn at random, and the trace of operations that it plans for it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from random import Random
from typing import Literal

from support.offload.clocks import Item, Look, Wait
from zoft.engine.offload.operations import Buffer, Op
from zoft.engine.offload.schedule import Road, Schedule

ActionKind = Literal["pass", "broken", "visit", "publish", "flush"]
Action = tuple[ActionKind, int]
Writeback = Literal["device", "host"] | None
# Of every road, who may write back; None: the blocks are frozen.
ROADS: tuple[tuple[Road, Writeback], ...] = (
    ("memory", None), ("memory", "device"), ("memory", "host"),
    ("file", None), ("file", "device"),
    ("staged", None), ("staged", "device"), ("staged", "host"),
)  # fmt: skip


@dataclass(frozen=True)
class Program:
    """Settings of a schedule, and what happens to it. The number of an action is a block's place."""

    road: Road
    writeback: Writeback
    blocks: tuple[int, ...]  # with gaps, where resident blocks stand between
    slots: int
    stagings: int
    poison: bool
    actions: tuple[Action, ...]

    def schedule(self) -> Schedule:
        return Schedule(
            self.blocks, self.slots, self.road, self.writeback, self.stagings, self.poison
        )


def program(random: Random, road: Road, writeback: Writeback, length: int = 8) -> Program:
    """Whole passes with and without a publish for the most part, now and then anything else."""
    blocks = tuple(sorted(random.sample(range(10), random.randint(1, 7))))
    kinds: list[ActionKind] = random.choices(
        ["pass", "publish", "broken", "visit", "flush"], [6, 4, 1, 2, 1], k=length
    )
    actions = tuple((kind, random.randrange(len(blocks))) for kind in kinds)
    if writeback is None:
        actions = tuple(action for action in actions if action[0] not in ("publish", "flush"))
    slots, stagings = random.randint(1, 4), random.randint(1, 3)
    return Program(
        road, writeback, blocks, slots, stagings, random.random() < 0.5,
        (("pass", 0), *actions, ("pass", 0), *((("flush", 0),) if writeback else ())),
    )  # fmt: skip


def trace(program: Program) -> list[Item]:
    """All operations of the program in the order in which they are submitted, and the host's waits.

    What it moves is followed on the way: each `enter` and `leave` finds the block at the version that it
    must have, or AssertionError is raised. This order is one that the waits allow, so that a trace
    without races means the same in every other.
    """
    driver = Driver(program.schedule())
    return list(_checked(item for action in program.actions for item in driver.do(action)))


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
            case "publish":
                yield from self.schedule.publish()
            case "flush":
                for block in self.schedule.stale:
                    yield from self._enter(block)
                    yield from self._leave()
                yield from map(Wait, self.schedule.at_home)
                assert self.schedule.stale == []
                yield from (Look(("home", block)) for block in blocks)

    def forget(self) -> None:
        self._inside = None
        self.schedule.forget()

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
            case "update" | "master":
                assert held(item.reads[0]) == (item.block, item.since), item
                holds[item.writes[0]] = (item.block, item.until)
            case "enter" | "leave":
                assert held(item.reads[0]) == (item.block, item.until), item
            case "read" | "upload" | "download" | "write":
                moved = held(item.reads[0])
                assert moved is not None, item
                assert moved[0] == item.block, item
                holds[item.writes[0]] = moved
