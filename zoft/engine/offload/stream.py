"""How a streamer is built: the blocks' layouts, their homes, the slots and the queues."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from zoft.engine.offload.arenas import Layout, layout_of
from zoft.engine.offload.executor import Executor
from zoft.engine.offload.homes import Files, Memory
from zoft.engine.offload.schedule import Transfer
from zoft.engine.offload.streamer import Streamer
from zoft.engine.offload.streams import Streams
from zoft.engine.optimizers.update import Tuned
from zoft.models.blocks import Block
from zoft.models.storage.gathered import Source
from zoft.system.accelerator import pin_all


def stream(
    blocks: Mapping[int, Block],
    tuned: Sequence[Tuned],
    kept: Sequence[str],
    sources: Mapping[str, Source],
    *,
    residency: Literal["host", "disk"],
    device: torch.device,
    slots: int,
    writeback: Literal["device", "host"] = "device",
    working: Path,
    say: Callable[[str], None],
) -> Streamer:
    """Make a streamer for blocks that lie in `sources`, or in memory, which they then leave.

    `kept` names what the update rule keeps of every tuned weight, `working` the file for the working
    copy of blocks that an update changed. Raises EnvironmentProblem.
    """
    moving = {
        name: found
        for block in blocks.values()
        for name, parameter in block.parameters.items()
        if (found := next((t for t in tuned if t.parameter is parameter), None)) is not None
    }
    layouts = layouts_of(blocks, moving, kept, sources)
    files = Files(layouts, sources, working)
    gpu = device.type != "cpu"
    home: Files | Memory = files
    pinned: list[Tensor] = []
    transfer: Transfer = "staged" if gpu else "file"
    if residency == "host":
        home, transfer = Memory(layouts, files), "memory"
        files.close()
        if gpu and pin_all(list(home.arenas.values()), device):
            pinned += home.arenas.values()
        elif gpu:
            say("the system refuses to pin the blocks' memory: they go through a small pinned ring")
            transfer = "staged"
    for number, block in blocks.items():
        if held := {n: t for n, t in block.parameters.items() if n not in sources}:
            home.take(number, held)
    streamer = Streamer(
        blocks,
        moving,
        kept,
        home,
        Executor(Streams(device) if gpu else None),
        layouts=layouts,
        transfer=transfer,
        slots=slots,
        device=device,
        writeback=writeback,
    )
    if gpu and pin_all(streamer.stagings, device):
        pinned += streamer.stagings
    elif gpu:
        say("the system refuses to pin any memory: copies to the GPU will wait for each other")
    streamer.pinned = pinned
    return streamer


def layouts_of(
    blocks: Mapping[int, Block],
    tuned: Mapping[str, Tuned],
    kept: Sequence[str],
    sources: Mapping[str, Source],
) -> dict[int, Layout]:
    """Lay out every block: its parameters, and for each tuned one what the update rule keeps of it
    (`kept`, float32, named `weight/name`). What is in no file counts as changing."""
    found = {}
    for number, block in blocks.items():
        entries = {n: (p.dtype, tuple(p.shape)) for n, p in block.parameters.items()}
        frozen = {n: entry for n, entry in entries.items() if n in sources and n not in tuned}
        changing = {name: entry for name, entry in entries.items() if name not in frozen}
        for name in [name for name in changing if name in tuned]:
            state = (torch.float32, entries[name][1])
            changing |= {f"{name}/{what}": state for what in kept}
        found[number] = layout_of(changing, frozen)
    return found
