"""Layouts of a block's tensors in one run of bytes, and memory (arenas) to hold them."""

from __future__ import annotations

import math
import mmap
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import accumulate

import torch
from torch import Tensor

from zoft.models.storage.safetensors import Entry
from zoft.system import accelerator

ALIGN = 512  # bytes, of every tensor: more than any kernel or BLAS asks for
PAGE = 4096  # bytes, of every arena: what direct file access and pinning ask for


@dataclass(frozen=True, slots=True)
class Layout:
    """The tensors of a block, by name, in the order of their `offsets` (bytes).

    What an update changes comes first: `changed` of `size` bytes, which are written back after it. What
    it does not change, `frozen`, begins on the next page.
    """

    entries: Mapping[str, Entry]
    offsets: Mapping[str, int]
    changed: int
    size: int

    @property
    def frozen(self) -> list[str]:
        """The names of the tensors that no update changes."""
        return [name for name, offset in self.offsets.items() if offset >= self.changed]

    def views(self, arena: Tensor) -> dict[str, Tensor]:
        """Return the tensors in an arena, by name."""
        found = {}
        for name, entry in self.entries.items():
            dtype, shape = entry
            raw = arena[self.offsets[name] : self.offsets[name] + nbytes(entry)]
            found[name] = raw.view(dtype).view(shape)
        return found


def layout_of(changing: Mapping[str, Entry], frozen: Mapping[str, Entry]) -> Layout:
    """Lay the tensors out one after the other, those that an update changes first."""
    begins, end = _place(changing, 0)
    changed = _up(end, PAGE)
    after, end = _place(frozen, changed)
    return Layout({**changing, **frozen}, {**begins, **after}, changed, _up(end, PAGE))


def new_arena(size: int, device: torch.device) -> Tensor:
    """Allocate `size` bytes that begin on a page. On an accelerator, nothing else uses them any more."""
    if device.type != "cpu":
        arena = torch.empty(size, dtype=torch.uint8, device=device)
        # Memory that torch hands out again may still be in use on the stream that had it; the copy
        # streams know nothing of that one yet.
        accelerator.synchronize(device)
        return arena
    # Mapped rather than allocated: it begins on a page, and goes back to the system when dropped.
    private = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS  # Python's own choice would be shared memory
    return torch.frombuffer(mmap.mmap(-1, max(size, PAGE), flags=private), dtype=torch.uint8)[:size]


def nbytes(entry: Entry) -> int:
    """The bytes of a tensor of this type and shape."""
    dtype, shape = entry
    return math.prod(shape) * dtype.itemsize


def _place(entries: Mapping[str, Entry], begin: int) -> tuple[dict[str, int], int]:
    """The offsets of tensors one after the other from `begin` on, and where they end."""
    sizes = (_up(nbytes(entry), ALIGN) for entry in entries.values())
    ends = list(accumulate(sizes, initial=begin))
    return dict(zip(entries, ends, strict=False)), ends[-1]


def _up(size: int, step: int) -> int:
    """Round `size` up to a multiple of `step`."""
    return -(-size // step) * step
