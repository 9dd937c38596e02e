"""Host memory: how much is free, how much this process holds and held, and what its allocator keeps."""

from __future__ import annotations

import ctypes
import os
import sys
from collections.abc import Iterator
from pathlib import Path

KEPT_KERNELS = 64


def gib(size: float) -> str:
    return f"{size / 2**30:.2f} GiB"


def free_host_bytes() -> int:
    """What this process could hold: what is free on the machine and in each control group (v1 or v2)
    that it is in, whichever is least, and what it holds already."""
    available = _value(Path("/proc/meminfo"), "MemAvailable:") * 1024
    return min([available, *_group_limits()]) + resident_bytes()


def resident_bytes() -> int:
    """What this process holds now."""
    return _value(Path("/proc/self/status"), "VmRSS:") * 1024


def _group_limits() -> Iterator[int]:
    """Bytes that are left of the limit of every control group above this process."""
    root = Path("/sys/fs/cgroup")
    for line in _text(Path("/proc/self/cgroup")).splitlines():
        _, controllers, path = line.split(":", 2)
        if controllers not in ("", "memory"):
            continue
        top = root / controllers
        group = top / path.strip("/")
        while True:
            yield from _left(group)
            if group == top or top not in group.parents:
                break
            group = group.parent


def _left(group: Path) -> Iterator[int]:
    for limit, usage, cache in (
        ("memory.max", "memory.current", "inactive_file"),
        ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
    ):
        most, used = (_text(group / name).strip() for name in (limit, usage))
        if most.isdecimal() and used.isdecimal():  # "max": none
            # The page cache makes room when it is asked to.
            yield int(most) - int(used) + _value(group / "memory.stat", cache)


def _value(file: Path, name: str) -> int:
    """The number behind `name` in a file of names and numbers; 0 if it is not there."""
    for line in _text(file).splitlines():
        if line.split(" ", 1)[0] == name or line.startswith(name):
            return int(line.split()[1])
    return 0


def _text(file: Path) -> str:
    try:
        return file.read_text(encoding="ascii", errors="replace")
    except OSError:
        return ""


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


def keep_few_kernels() -> None:
    """Let torch keep the matrix products that oneDNN compiled for the last 64 shapes, not for 1024;
    before torch is imported, and unless the environment says otherwise.

    In bfloat16 on a CPU every width of a batch is compiled anew for every matrix shape, and some 0.8
    MiB are kept of each: 220 MiB after 50 steps of a 135M model. To compile one again takes
    milliseconds, and the layers of a pass, which share shapes, still find theirs.
    """
    for name in ("LRU_CACHE_CAPACITY", "ONEDNN_PRIMITIVE_CACHE_CAPACITY"):
        os.environ.setdefault(name, str(KEPT_KERNELS))


def _mallopt(*, mmap_threshold: int, trim_threshold: int) -> None:
    """Bytes. Nothing where there is no glibc."""
    if sys.platform != "linux":
        return
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)  # musl has none
    if mallopt is not None:
        m_trim_threshold, m_mmap_threshold = -1, -3
        mallopt(m_mmap_threshold, mmap_threshold)
        mallopt(m_trim_threshold, trim_threshold)
