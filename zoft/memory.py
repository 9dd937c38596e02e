"""Memory: how much was used, and what to do when there is none left."""

from __future__ import annotations

import ctypes
import re
import resource
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch

from zoft.alternatives import Variant, alternatives
from zoft.data.examples import Example
from zoft.errors import OutOfMemory, ZoftError, lacks_memory
from zoft.footprint import footprint
from zoft.recipe.schema import Recipe
from zoft.residency import budgets, free_host_bytes, gib, resident_bytes
from zoft.shape import shape_of


def peak_memory_bytes(device: torch.device) -> int:
    """The process's largest resident size so far; on a GPU, the largest allocation on the card."""
    if device.type == "cuda":
        return int(torch.cuda.max_memory_allocated(device))
    # getrusage begins with what the process that started this one had: a second best.
    status = Path("/proc/self/status")
    found = re.search(r"VmHWM:\s+(\d+) kB", status.read_text()) if status.exists() else None
    if found:
        return int(found[1]) * 1024
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def keep_freed_memory() -> None:
    """Let glibc keep what is freed instead of handing it back to the kernel after every operation.

    An activation of some megabytes is otherwise unmapped when it is dropped and faulted in again, page
    by page, by the next one: a paired pass of a 135M model took a tenth longer for that. What a pass
    frees is what the next one takes, so the peak stays as it is.
    """
    _mallopt(mmap_threshold=1 << 30, trim_threshold=(1 << 31) - 1)


def hand_back_freed_memory() -> None:
    """Let glibc map what is not small on its own, and hand it back to the kernel when it is freed.

    For loading: a tensor as it is read (or while its codes are made) is larger than what is kept of
    it, and between tensors that stay, what it leaves is not used again. Quantising a bfloat16 model of
    0.5B weights left twice of what it kept behind.
    """
    _mallopt(mmap_threshold=1 << 18, trim_threshold=1 << 18)


def _mallopt(*, mmap_threshold: int, trim_threshold: int) -> None:
    """Bytes. Nothing where there is no glibc."""
    if sys.platform != "linux":
        return
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)  # musl has none
    if mallopt is not None:
        m_trim_threshold, m_mmap_threshold = -1, -3
        mallopt(m_mmap_threshold, mmap_threshold)
        mallopt(m_trim_threshold, trim_threshold)


@dataclass
class Explained:
    """What `memory_explained` can know of a run: how its recipe would resolve with more overrides, and
    its examples, once they are read."""

    recipe: Recipe
    variant: Variant | None
    sets: dict[str, Sequence[Example]] | None = None


@contextmanager
def memory_explained(recipe: Recipe, variant: Variant | None = None) -> Iterator[Explained]:
    """Turn the allocators' errors into one line: what was asked for, what was free, what would fit.

    Without `variant` nothing is computed, and the line names what usually helps.
    """
    explained = Explained(recipe, variant)
    try:
        yield explained
    except (MemoryError, RuntimeError) as error:  # torch's own is a RuntimeError
        if not lacks_memory(error):
            raise
        wanted, free = requested_bytes(str(error)), free_bytes(recipe.device)
        asked = f"{gib(wanted)} more were asked for" if wanted else "more was asked for"
        message = f"out of memory: {asked}, {gib(free)} are free"
        raise OutOfMemory(f"{message}; {_ways(explained, wanted - free)}") from error


def requested_bytes(text: str) -> int:
    """What an allocator says it was asked for; 0 if it does not."""
    found = re.search(r"tried to allocate (\d+(?:\.\d+)?) ?([KMG]i)?B?", text, re.IGNORECASE)
    if not found:
        return 0
    unit = {None: 1, "ki": 2**10, "mi": 2**20, "gi": 2**30}[found[2] and found[2].lower()]
    return int(float(found[1]) * unit)


def free_bytes(device: str) -> int:
    """What is left for another allocation on the device."""
    if device.startswith("cuda") and torch.cuda.is_available():
        return int(torch.cuda.mem_get_info(device)[0])
    return free_host_bytes() - resident_bytes()


def _ways(explained: Explained, short: int) -> str:
    """What would fit, by the footprint: less than now by what was lacking, and within the budgets."""
    recipe = explained.recipe
    if explained.variant is None:
        return "try " + ", ".join(_usual(recipe))
    try:
        shape = shape_of(recipe, explained.sets)
        now, (device, host) = footprint(recipe, shape), budgets(recipe)
        limits = min(device, now.device - max(0, short)), host
        found = alternatives(recipe, shape, explained.sets, now, limits, explained.variant)
    except (ZoftError, RuntimeError, MemoryError):  # whatever it is, it must not hide the first
        return "try " + ", ".join(_usual(recipe))
    fitting = [f"{x.overrides} ({gib(x.footprint.device)})" for x in found if x.fits]
    if not fitting:
        return f"no single change that zoft knows of makes it fit; try {', '.join(_usual(recipe))}"
    return f"would fit: {', '.join(fitting)}"


def _usual(recipe: Recipe) -> list[str]:
    assert isinstance(recipe.train.micro_batch_size, int)
    ways = [
        f"train.micro_batch_size={max(1, recipe.train.micro_batch_size // 2)}",
        f"eval.batch_size={max(1, recipe.eval.batch_size // 2)}",
    ]
    return [*ways, "tune.method=lora"] if recipe.tune.method == "full" else ways
