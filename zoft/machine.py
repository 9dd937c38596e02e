"""The automatic choices that need the machine: device, compute type, perturbation. Made once."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Literal

import torch

from zoft.errors import EnvironmentProblem
from zoft.models.quantize import library_of
from zoft.recipe.schema import Recipe

DTYPES = {
    "float32": torch.float32,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
}
# METHODS section 2: a probe must stand out of the forward pass's rounding noise.
PERTURBATION = {"float32": 1e-3, "float16": 1e-3, "bfloat16": 3e-3}


def resolve(recipe: Recipe) -> Recipe:
    """Fill in the `auto`s of `device`, `model.compute_dtype` and `optimizer.perturbation`.

    Raises EnvironmentProblem for a device or a library (model.quantization) that is not there.
    """
    library_of(recipe.model.quantization)
    device = _device(recipe.device)
    model, optimizer = recipe.model, recipe.optimizer
    if model.compute_dtype == "auto":
        model = model.model_copy(update={"compute_dtype": fast_dtype(device)})
    if optimizer.perturbation == "auto":
        perturbation = PERTURBATION[model.compute_dtype]
        optimizer = optimizer.model_copy(update={"perturbation": perturbation})
    return recipe.model_copy(update={"device": device, "model": model, "optimizer": optimizer})


def _device(name: str) -> str:
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
    """IEEE float32 and one summation order on a GPU (METHODS section 6, rule 8)."""
    if device.type != "cuda":
        return
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.backends.cuda.matmul.allow_tf32 = False
    torch.backends.cudnn.allow_tf32 = False
    torch.backends.cuda.matmul.allow_bf16_reduced_precision_reduction = False
    torch.backends.cuda.matmul.allow_fp16_reduced_precision_reduction = False
