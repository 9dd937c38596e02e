"""How fast a card copies and multiplies: the rates that a step's bytes and products are divided by."""

from __future__ import annotations

import time
from collections.abc import Callable

import torch

from zoft.system.device import DTYPES, fast_dtype

REPEATS = 5
COPIED = {"cpu": 2**24}  # bytes by the kind of device; others 1 GiB
SIDE = {"cpu": 256}  # of the multiplied matrices; others 8,192


def wait(device: torch.device) -> None:
    """Return when all that was handed to the device is done."""
    if device.type != "cpu":
        torch.accelerator.synchronize(device)


def seconds(work: Callable[[], object], device: torch.device, repeats: int = REPEATS) -> float:
    """The least time of some calls; the first one is not counted."""
    found = []
    for _ in range(repeats + 1):
        wait(device)
        begun = time.perf_counter()
        work()
        wait(device)
        found.append(time.perf_counter() - begun)
    return min(found[1:])


def copy_rate(device: torch.device) -> float:
    """Bytes a second of a copy on the device: those read and those written."""
    source = torch.zeros(COPIED.get(device.type, 2**30), dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    return 2 * source.numel() / seconds(lambda: target.copy_(source), device)


def upload_rate(device: torch.device) -> float:
    """Bytes a second from pinned memory of the host to the device."""
    size, gpu = COPIED.get(device.type, 2**30) // 4, device.type != "cpu"
    source = torch.zeros(size, dtype=torch.uint8, pin_memory=gpu)
    target = torch.empty(size, dtype=torch.uint8, device=device)
    return size / seconds(lambda: target.copy_(source, non_blocking=True), device)


def product_rate(device: torch.device) -> float:
    """Multiplications and additions a second of a matrix product, in the type that zoft computes in."""
    side = SIDE.get(device.type, 8192)
    dtype = DTYPES[fast_dtype(str(device))]
    a, b = (torch.randn(side, side, device=device).to(dtype) for _ in range(2))
    return 2 * side**3 / seconds(lambda: a @ b, device)
