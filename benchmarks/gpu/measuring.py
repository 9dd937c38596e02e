"""Times, launches, synchronisations and bytes of a step; all that knows the device is in here."""

from __future__ import annotations

import argparse
import gc
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from gpu.results import Results
from zoft.planning.doctor.gpu import card
from zoft.planning.doctor.speed import wait
from zoft.system.device import make_repeatable, peak_memory_bytes

Step = Callable[[], object]
WARM = 2  # steps that compile and allocate


def part(documentation: str | None, *options: str) -> argparse.Namespace:
    """The options of a part: --out DIR, --rehearse, and `options`, which take several words each.

    `results` of it is where rows go, `device` the GPU, in a rehearsal the CPU.
    """
    parser = argparse.ArgumentParser(description=(documentation or "").partition("\n")[0])
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--rehearse", action="store_true", help="tiny shapes")
    for option in options:
        parser.add_argument(f"--{option}", nargs="+", required=True)
    found = parser.parse_args()
    found.results, found.device = Results(found.out), card()
    make_repeatable(found.device)
    return found


def timed(step: Step, repeats: int, device: torch.device) -> float:
    """Median seconds, after steps that compile and allocate; of one repeat, what that takes itself."""
    seconds, warm = [], WARM if repeats > 1 else 0
    for i in range(repeats + warm):
        wait(device)
        begun = time.perf_counter()
        step()
        wait(device)
        if i >= warm:
            seconds.append(time.perf_counter() - begun)
    return statistics.median(seconds)


def profiled(step: Step, device: torch.device) -> Any:
    """The profile that torch's profiler makes of one step."""
    profiler: Any = torch.profiler
    wait(device)
    with profiler.profile(activities=profiler.supported_activities()) as profile:
        step()
        wait(device)
    return profile


def counted(step: Step, device: torch.device) -> tuple[int, int]:
    """Kernel launches of one step, and how often the host waited for the device."""
    names = [event.name for event in profiled(step, device).events() or ()]
    launches = sum("LaunchKernel" in name for name in names)
    # A copy to pageable memory on the host waits, too: it shows as the wait behind it.
    waits = ("cudaStreamSync", "cudaEventSync", "hipStreamSync", "hipEventSync")
    return launches, sum(name.startswith(waits) for name in names)


def forget_peak(device: torch.device) -> None:
    """Free what nothing holds any more, and measure the peak from here on (on a CPU: of the process)."""
    gc.collect()
    if device.type != "cpu":
        torch.accelerator.empty_cache()
        torch.accelerator.reset_peak_memory_stats(device)


def peak(step: Step, device: torch.device) -> int:
    """Bytes that torch held at most during a step; on a CPU, the process so far."""
    forget_peak(device)
    step()
    return peak_memory_bytes(device)
