"""Homes: host memory or files, which hold blocks while they are not computed with."""

from __future__ import annotations

import errno
import os
from collections.abc import Mapping
from itertools import accumulate
from pathlib import Path

import torch
from torch import Tensor

from zoft.engine.offload.arenas import Layout, new_arena
from zoft.errors import EnvironmentProblem
from zoft.models.storage.gathered import Source, read
from zoft.models.storage.safetensors import Reader, memory_of

_PIECE = 32 << 20  # bytes that one call to the kernel moves


class Files:
    """Blocks in files: in the model's own, and in a working copy what an update has changed, or what
    is in no file (codes of a quantised model).

    `sources` says where each tensor was stored; what has no source is zero at first (moments). The
    working copy is one file: what updates change, block after block. It is disposable, for it follows
    from the sources and the journal. Every method is called by one thread at a time.
    """

    def __init__(
        self, layouts: Mapping[int, Layout], sources: Mapping[str, Source], working: Path | None
    ) -> None:
        self.layouts, self.sources, self.working = layouts, sources, working
        starts = accumulate((layout.changed for layout in layouts.values()), initial=0)
        self._starts = dict(zip(layouts, starts, strict=False))
        self._moved: set[int] = set()
        self._reader = Reader()
        self._file: int | None = None
        self._direct = True

    def read(self, block: int, arena: Tensor) -> None:
        """Fill the block's arena. Raises EnvironmentProblem."""
        layout = self.layouts[block]
        views = layout.views(arena)
        if block in self._moved:
            self._transfer(block, arena[: layout.changed], write=False)
            views = {name: views[name] for name in layout.frozen}
        for name, view in views.items():
            if name in self.sources:
                read(self._reader, self.sources[name], view)
            else:
                view.zero_()

    def write(self, block: int, arena: Tensor) -> None:
        """Keep what an update changed in the arena. Raises EnvironmentProblem."""
        self._transfer(block, arena[: self.layouts[block].changed], write=True)
        self._moved.add(block)

    def take(self, block: int, tensors: Mapping[str, Tensor]) -> None:
        """Keep tensors that lie in no file: all of the block that is not in `sources`."""
        layout = self.layouts[block]
        arena = new_arena(layout.size, torch.device("cpu"))
        _fill(layout, arena, tensors)
        self.write(block, arena)

    def close(self) -> None:
        """Close all files and delete the working copy."""
        self._reader.close()
        if self._file is not None:
            os.close(self._file)
            self._file = None
        if self.working is not None:
            self.working.unlink(missing_ok=True)

    def _transfer(self, block: int, arena: Tensor, *, write: bool) -> None:
        """Copy `arena` to the block's part of the working copy, or from there."""
        assert self.working is not None, "frozen blocks are not written"
        memory, start, done = memory_of(arena), self._starts[block], 0
        try:
            file = self._open()
            while done < len(memory):
                piece = memory[done : done + _PIECE]
                if write:
                    moved = os.pwritev(file, [piece], start + done)
                else:
                    moved = os.preadv(file, [piece], start + done)
                if moved == 0:
                    raise EnvironmentProblem(f"cannot read {self.working}: it is cut short")
                done += moved
            if not self._direct:
                if write:
                    os.fdatasync(file)  # only what is on the disk can leave the page cache
                os.posix_fadvise(file, start, done, os.POSIX_FADV_DONTNEED)
        except OSError as error:
            full = error.errno == errno.ENOSPC
            reason = "the disk is full" if full else error.strerror
            verb = "write" if write else "read"
            raise EnvironmentProblem(f"cannot {verb} {self.working}: {reason}") from error

    def _open(self) -> int:
        """Open the working copy, past the page cache where the file system can."""
        assert self.working is not None
        if self._file is None:
            self.working.parent.mkdir(parents=True, exist_ok=True)
            flags = os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC
            try:
                self._file = os.open(self.working, flags | os.O_DIRECT, 0o600)
            except OSError as error:
                if error.errno != errno.EINVAL:
                    raise
                self._file, self._direct = os.open(self.working, flags, 0o600), False
            sizes = sum(layout.changed for layout in self.layouts.values())
            try:
                os.posix_fallocate(self._file, 0, sizes)  # a full disk is found out now
            except OSError as error:
                if error.errno not in (errno.EINVAL, errno.EOPNOTSUPP):
                    raise  # but a file system that cannot reserve space is good enough
        return self._file


class Memory:
    """Blocks in host memory, one arena each."""

    def __init__(self, layouts: Mapping[int, Layout], files: Files) -> None:
        self._layouts = layouts
        self.arenas: dict[int, Tensor] = {}
        for block, layout in layouts.items():
            self.arenas[block] = new_arena(layout.size, torch.device("cpu"))
            files.read(block, self.arenas[block])

    def take(self, block: int, tensors: Mapping[str, Tensor]) -> None:
        """Keep tensors that lie in no file."""
        _fill(self._layouts[block], self.arenas[block], tensors)

    def read(self, block: int, arena: Tensor) -> None:
        """Copy the block into another arena of the host: a pinned staging, if the home is not pinned."""
        arena[: self.arenas[block].numel()].copy_(self.arenas[block])

    def write(self, block: int, arena: Tensor) -> None:
        """Copy what an update changed from another arena of the host."""
        changed = self._layouts[block].changed
        self.arenas[block][:changed].copy_(arena[:changed])


def _fill(layout: Layout, arena: Tensor, tensors: Mapping[str, Tensor]) -> None:
    """Copy the tensors to their places in the arena."""
    views = layout.views(arena)
    for name, tensor in tensors.items():
        views[name].copy_(tensor)
