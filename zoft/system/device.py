"""The device and the types it computes in."""

from __future__ import annotations

import os
import re
import resource
import sys
from pathlib import Path
from typing import Literal

import torch

from zoft.errors import EnvironmentProblem, RecipeError
from zoft.system import accelerator

DTYPES = {
    "float32": torch.float32,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
}


def choose_device(name: str) -> str:
    """Return `cpu`, or the accelerator with its number. Raises RecipeError for a name that torch
    does not know, EnvironmentProblem for what is not here or has no streams."""
    if name == "auto":
        return accelerator.first() or "cpu"
    kind, _, number = name.partition(":")
    if kind == "cpu":
        return kind
    if not accelerator.known(kind):
        raise RecipeError(f"device: torch knows no {kind}; write auto, cpu or, for a GPU, cuda")
    if not accelerator.has_streams(kind):
        raise EnvironmentProblem(f"device: {kind} has no streams in this torch; write auto or cpu")
    here = accelerator.count(kind)
    if not here:
        raise EnvironmentProblem(f"device: {name} is not here: torch sees none; write auto or cpu")
    if int(number or 0) >= here:
        raise EnvironmentProblem(
            f"device: {name}: torch sees {here} of {kind}, the first is {kind}:0"
        )
    return f"{kind}:{int(number or 0)}"


def fast_dtype(device: str) -> Literal["bfloat16", "float32"]:
    """bfloat16 where the hardware multiplies it, else float32."""
    if device == "cpu":
        return "bfloat16" if _cpu_has_bfloat16() else "float32"
    return "bfloat16" if accelerator.has_bfloat16(device) else "float32"


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
    if device.type == "cpu":
        return
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.backends.cuda.matmul.allow_tf32 = False
    torch.backends.cudnn.allow_tf32 = False
    torch.backends.cuda.matmul.allow_bf16_reduced_precision_reduction = False
    torch.backends.cuda.matmul.allow_fp16_reduced_precision_reduction = False


def peak_memory_bytes(device: torch.device) -> int:
    """The process's largest resident size so far; on an accelerator, the largest sum of its tensors."""
    if device.type != "cpu":
        return accelerator.peak_bytes(device)
    # getrusage begins with what the process that started this one had: a second best.
    status = Path("/proc/self/status")
    found = re.search(r"VmHWM:\s+(\d+) kB", status.read_text()) if status.exists() else None
    if found:
        return int(found[1]) * 1024
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
