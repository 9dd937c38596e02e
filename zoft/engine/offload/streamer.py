"""A model whose blocks are streamed: the plan bound to modules, memory and updates."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor, nn

from zoft.engine.offload.arenas import Layout, new_arena
from zoft.engine.offload.executor import Executor, Work
from zoft.engine.offload.homes import Files, Memory
from zoft.engine.offload.operations import Op
from zoft.engine.offload.schedule import Schedule, Transfer
from zoft.engine.optimizers.update import Tuned, Update
from zoft.models.blocks import Block, placeholder
from zoft.system.accelerator import unpin

PENDING = 256  # updates that a home may lack


class Streamer:
    """Blocks that run from `slots` arenas on `device`. Homes are files, or memory filled from them.

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
        transfer: Transfer,
        slots: int,
        device: torch.device,
        writeback: Literal["device", "host"] = "device",
    ) -> None:
        self.blocks, self.home, self.executor, self.layouts = blocks, home, executor, layouts
        self.tuned, self.kept, self.device = tuned, tuple(kept), device
        self.schedule = Schedule(list(blocks), slots, transfer, writeback if tuned else None)
        size = max(layout.size for layout in layouts.values())
        self._slots = [new_arena(size, device) for _ in range(slots)]
        self._views = {b: [layouts[b].views(slot) for slot in self._slots] for b in blocks}
        stagings = self.schedule.stagings * (2 if tuned else 1) if transfer == "staged" else 0
        self.stagings = [new_arena(size, torch.device("cpu")) for _ in range(stagings)]
        self._placeholders = {
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

    def enqueue_update(self, update: Update) -> None:
        """Have the update applied to each tuned weight of the blocks before it is next read."""
        if not self.tuned:
            return
        ops = self.schedule.enqueue_update()
        self._updates[self.schedule.version] = update
        self._submit(ops)
        self._forget_updates()
        if len(self._updates) > PENDING:
            self.flush()

    def flush(self) -> None:
        """Apply all updates to all homes, and wait for that."""
        for block in self.schedule.stale:
            self.enter(block)
            self.leave(block)
        for event in self.schedule.write_backs:
            self.executor.wait(event)
        self._forget_updates()

    def visits(self) -> Iterator[int]:
        """Enter each block in turn: its parameters, moved by all updates, are in place meanwhile."""
        for number in self.blocks:
            self.enter(number)
            try:
                yield number
            finally:
                self.leave(number)

    def kept_of(self, block: int) -> dict[str, Tensor]:
        """Return what the update rule keeps of an entered block's weights, named `weight/name`."""
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
        """Give the block's slot free, once the work that was handed over until now is done."""
        self._inside = None
        self._submit(self.schedule.leave(block))

    def close(self) -> None:
        """Stop the threads and delete the working copy; the model cannot run any more."""
        self.executor.close()
        while self.pinned:
            unpin(self.pinned.pop(), self.device)
        if isinstance(self.home, Files):
            self.home.close()

    # -- operations ---------------------------------------------------------------------------------

    def _submit(self, ops: Sequence[Op]) -> None:
        """Hand the operations to the executor; if one cannot be, no later one is done."""
        try:
            for op in ops:
                self.executor.submit(op, self._work(op))
        except BaseException as error:
            self.executor.fail(error)  # later operations would wait for those that are missing
            raise

    def _work(self, op: Op) -> Work:
        """Return what the operation does, as a function for the executor."""
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
                return partial(self._apply_updates, block, views, self._updates_of(op))
            case "host_update":
                assert isinstance(self.home, Memory)
                views = layout.views(self.home.arenas[block])
                return partial(self._apply_updates, block, views, self._updates_of(op))
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

    def _updates_of(self, op: Op) -> list[Update]:
        """Return the updates between the versions of the operation, oldest first."""
        return [self._updates[version] for version in range(op.since + 1, op.until + 1)]

    def _apply_updates(
        self, block: int, views: Mapping[str, Tensor], updates: Sequence[Update]
    ) -> None:
        """Apply the updates, in their order, to the block's tensors `views`."""
        for name in self.blocks[block].parameters:
            tuned = self.tuned.get(name)
            if tuned is not None:
                state = [views[f"{name}/{what}"] for what in self.kept]
                for update in updates:
                    update(tuned, views[name], state)

    def _bind(self, block: int, slot: int) -> None:
        """Let the block's parameters be the tensors in the slot."""
        views = self._views[block][slot]
        for name, parameter in self.blocks[block].parameters.items():
            parameter.data = views[name]

    def _unbind(self, block: int) -> None:
        """Let the block's parameters be placeholders."""
        for name, parameter in self.blocks[block].parameters.items():
            parameter.data = self._placeholders[block][name]

    def _forget_updates(self) -> None:
        """Drop the updates that no home or slot lacks any more."""
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
