"""The device and the types it computes in."""

from __future__ import annotations

import os
import re
import resource
import sys
from pathlib import Path
from typing import Literal

import torch

from zoft.errors import EnvironmentProblem

DTYPES = {
    "float32": torch.float32,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
}


def choose_device(name: str) -> str:
    if name == "auto":
        return "cuda:0" if torch.cuda.is_available() else "cpu"
    if name == "cpu":
        return name
    number = int(name.partition(":")[2] or 0)
    if not torch.cuda.is_available():
        raise EnvironmentProblem(f"device: {name} asks for a GPU, and torch sees none; write cpu")
    if number >= torch.cuda.device_count():
        raise EnvironmentProblem(f"device: {name}: torch sees {torch.cuda.device_count()} GPUs")
    return f"cuda:{number}"


def fast_dtype(device: str) -> Literal["bfloat16", "float32"]:
    """bfloat16 where the hardware multiplies it, else float32."""
    if device == "cpu":
        return "bfloat16" if _cpu_has_bfloat16() else "float32"
    return "bfloat16" if torch.cuda.get_device_capability(device) >= (8, 0) else "float32"


def _cpu_has_bfloat16() -> bool:
    cpu = torch.backends.cpu.get_cpu_capability()
    if not cpu.startswith("AVX512"):
        return False
    try:
        flags = Path("/proc/cpuinfo").read_text(encoding="ascii", errors="ignore")
    except OSError:
        return False
    return "avx512_bf16" in flags or "amx_bf16" in flags


def make_repeatable(device: torch.device) -> None:
    """IEEE float32, one order of sums on a GPU (docs/methods.md#repeatable-arithmetic-on-gpus)."""
    if device.type != "cuda":
        return
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.backends.cuda.matmul.allow_tf32 = False
    torch.backends.cudnn.allow_tf32 = False
    torch.backends.cuda.matmul.allow_bf16_reduced_precision_reduction = False
    torch.backends.cuda.matmul.allow_fp16_reduced_precision_reduction = False


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
