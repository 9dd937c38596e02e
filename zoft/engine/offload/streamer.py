"""A model whose blocks run from slots: binds the plan to modules, memory and updates."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor, nn

from zoft.engine.offload.arenas import Layout, new_arena, unpin
from zoft.engine.offload.executor import Executor
from zoft.engine.offload.homes import Files, Memory
from zoft.engine.offload.operations import Op
from zoft.engine.offload.schedule import Road, Schedule
from zoft.engine.optimizers.update import Tuned, Update
from zoft.models.blocks import Block, placeholder

PENDING = 256  # updates that a block may be behind


class Streamer:
    """Runs `blocks` through `slots` arenas on `device`. Homes are files, or memory filled from them.

    `tuned` are the blocks' tuned parameters by name, `kept` what the update rule keeps of each. From
    construction on the blocks' modules fetch their parameters when they run; before that, and
    afterwards, these are placeholders.
    """

    def __init__(
        self,
        blocks: Mapping[int, Block],
        tuned: Mapping[str, Tuned],
        kept: Sequence[str],
        home: Files | Memory,
        executor: Executor,
        *,
        layouts: Mapping[int, Layout],
        road: Road,
        slots: int,
        device: torch.device,
        writeback: Literal["device", "host"] = "device",
    ) -> None:
        self.blocks, self.home, self.executor, self.layouts = blocks, home, executor, layouts
        self.tuned, self.kept = tuned, tuple(kept)
        self.schedule = Schedule(list(blocks), slots, road, writeback if tuned else None)
        size = max(layout.size for layout in layouts.values())
        self._slots = [new_arena(size, device) for _ in range(slots)]
        self._views = {b: [layouts[b].views(slot) for slot in self._slots] for b in blocks}
        stagings = self.schedule.stagings * (2 if tuned else 1) if road == "staged" else 0
        self.stagings = [new_arena(size, torch.device("cpu")) for _ in range(stagings)]
        self._absent = {
            b: {n: placeholder(p, p.device) for n, p in x.parameters.items()}
            for b, x in blocks.items()
        }
        self._updates: dict[int, Update] = {}
        self.pinned: list[Tensor] = []  # memory to be given back unlocked
        self._inside: int | None = None
        for number, block in blocks.items():
            self._unbind(number)
            block.module.register_forward_pre_hook(self._entering(number))
            block.module.register_forward_hook(self._leaving(number))

    # -- using it -----------------------------------------------------------------------------------

    def publish(self, update: Update) -> None:
        """Every tuned weight of the blocks has moved by this when it is next read."""
        if not self.tuned:
            return
        ops = self.schedule.publish()
        self._updates[self.schedule.version] = update
        self._submit(ops)
        self._forget_updates()
        if len(self._updates) > PENDING:
            self.flush()

    def flush(self) -> None:
        """Return when no home lacks an update."""
        for block in self.schedule.stale:
            self.enter(block)
            self.leave(block)
        for event in self.schedule.at_home:
            self.executor.wait(event)
        self._forget_updates()

    def visits(self) -> Iterator[int]:
        """Each block in turn, with its parameters (moved by all updates) in place."""
        for number in self.blocks:
            self.enter(number)
            try:
                yield number
            finally:
                self.leave(number)

    def kept_of(self, block: int) -> dict[str, Tensor]:
        """What the update rule keeps of an entered block's weights, named `weight/name`."""
        views = self._views[block][self.schedule.slot_of(block)]
        return {
            name: view for name, view in views.items() if name not in self.blocks[block].parameters
        }

    def enter(self, block: int) -> None:
        """Put the block's parameters in place; returns when the host may hand over work on them."""
        if self._inside is not None:  # a pass was broken off inside it
            self.leave(self._inside)
        self._submit(self.schedule.enter(block))
        self._inside = block  # not before: what failed on the way in is not left

    def leave(self, block: int) -> None:
        """The block's work is handed over; its slot may be used again after that."""
        self._inside = None
        self._submit(self.schedule.leave(block))

    def close(self) -> None:
        """Stop the threads and delete the working copy; the model cannot run any more."""
        self.executor.close()
        while self.pinned:
            unpin(self.pinned.pop())
        if isinstance(self.home, Files):
            self.home.close()

    # -- operations ---------------------------------------------------------------------------------

    def _submit(self, ops: Sequence[Op]) -> None:
        try:
            for op in ops:
                self.executor.submit(op, self._work(op))
        except BaseException as error:
            self.executor.fail(error)  # later operations would wait for those that are missing
            raise

    def _work(self, op: Op) -> Callable[[], object]:
        block, layout = op.block, self.layouts[op.block]
        slot = self._slots[op.slot] if op.slot >= 0 else None
        host = self.stagings[op.staging] if op.staging >= 0 else None
        match op.kind:
            case "enter":
                return lambda: self._bind(block, op.slot)
            case "leave":
                return lambda: self._unbind(block)
            case "update":
                views = self._views[block][op.slot]
                return partial(self._move, block, views, self._between(op))
            case "master":
                assert isinstance(self.home, Memory)
                views = layout.views(self.home.arenas[block])
                return partial(self._move, block, views, self._between(op))
        buffer = host if host is not None else slot
        assert buffer is not None
        match op.kind:
            case "read":
                return lambda: self.home.read(block, buffer)
            case "write":
                return lambda: self.home.write(block, buffer)
        assert slot is not None
        if host is None:
            assert isinstance(self.home, Memory)
            host = self.home.arenas[block]
        size = layout.size if op.kind == "upload" else layout.changed
        there, here = (slot, host) if op.kind == "upload" else (host, slot)
        return lambda: there[:size].copy_(here[:size], non_blocking=True)

    def _between(self, op: Op) -> list[Update]:
        return [self._updates[version] for version in range(op.since + 1, op.until + 1)]

    def _move(self, block: int, views: Mapping[str, Tensor], updates: Sequence[Update]) -> None:
        for name in self.blocks[block].parameters:
            tuned = self.tuned.get(name)
            if tuned is not None:
                state = [views[f"{name}/{what}"] for what in self.kept]
                for update in updates:
                    update(tuned, views[name], state)

    def _bind(self, block: int, slot: int) -> None:
        views = self._views[block][slot]
        for name, parameter in self.blocks[block].parameters.items():
            parameter.data = views[name]

    def _unbind(self, block: int) -> None:
        for name, parameter in self.blocks[block].parameters.items():
            parameter.data = self._absent[block][name]

    def _forget_updates(self) -> None:
        oldest = self.schedule.oldest
        for version in [v for v in self._updates if v <= oldest]:
            del self._updates[version]

    def _entering(self, block: int) -> Callable[..., None]:
        def hook(_module: nn.Module, _inputs: Any) -> None:
            self.enter(block)

        return hook

    def _leaving(self, block: int) -> Callable[..., None]:
        def hook(_module: nn.Module, _inputs: Any, _output: Any) -> None:
            self.leave(block)

        return hook
