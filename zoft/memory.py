"""Memory: how much was used, and what to do when there is none left."""

from __future__ import annotations

import ctypes
import re
import resource
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from zoft.errors import OutOfMemory
from zoft.recipe.schema import Recipe


def peak_memory_bytes(device: torch.device) -> int:
    """The process's largest resident size so far; on a GPU, the largest allocation on the card."""
    if device.type == "cuda":
        return int(torch.cuda.max_memory_allocated(device))
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def keep_freed_memory() -> None:
    """Let glibc keep what is freed instead of handing it back to the kernel after every operation.

    An activation of some megabytes is otherwise unmapped when it is dropped and faulted in again, page
    by page, by the next one: a paired pass of a 135M model took a tenth longer for that. What a pass
    frees is what the next one takes, so the peak stays as it is.
    """
    if sys.platform != "linux":
        return
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)  # musl has none
    if mallopt is not None:
        m_trim_threshold, m_mmap_threshold = -1, -3
        mallopt(m_mmap_threshold, 1 << 30)
        mallopt(m_trim_threshold, (1 << 31) - 1)


@contextmanager
def memory_explained(recipe: Recipe) -> Iterator[None]:
    """Turn the allocators' errors into one line with the overrides that need less."""
    try:
        yield
    except (MemoryError, RuntimeError) as error:  # torch's own is a RuntimeError
        text = str(error)
        if isinstance(error, RuntimeError) and not re.search("out of memory|allocate memory", text):
            raise
        assert isinstance(recipe.train.micro_batch_size, int)
        ways = [
            f"train.micro_batch_size={max(1, recipe.train.micro_batch_size // 2)}",
            f"eval.batch_size={max(1, recipe.eval.batch_size // 2)}",
        ]
        if recipe.tune.method == "full":
            ways.append("tune.method=lora")
        first = next(iter(text.splitlines()), "no more memory")
        raise OutOfMemory(f"out of memory: {first}; try {', '.join(ways)}") from error
