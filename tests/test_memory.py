from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from zoft.errors import OutOfMemory
from zoft.memory import memory_explained, peak_memory_bytes
from zoft.recipe.schema import Recipe


def recipe(**sections: Any) -> Recipe:
    data = {"train": {"path": "t.jsonl"}, "format": "text"}
    train = {"batch_size": 8, "micro_batch_size": 8}
    return Recipe.model_validate({"model": {"name": "m"}, "data": data, "train": train, **sections})


def test_the_peak_is_in_bytes() -> None:
    status = Path("/proc/self/status").read_text()
    [peak] = [line.split()[1] for line in status.splitlines() if line.startswith("VmHWM:")]
    assert peak_memory_bytes(torch.device("cpu")) == pytest.approx(int(peak) * 1024, rel=0.05)


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        torch.cuda.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB\nmore"),
        RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to ..."),
    ],
)
def test_no_memory_left_names_what_needs_less(error: Exception) -> None:
    first = str(error).partition("\n")[0] or "no more memory"
    with pytest.raises(OutOfMemory) as caught, memory_explained(recipe()):
        raise error
    assert str(caught.value) == (
        f"out of memory: {first}; try train.micro_batch_size=4, eval.batch_size=16, "
        "tune.method=lora"
    )


def test_what_is_as_small_as_it_gets_stays() -> None:
    least = recipe(train={"micro_batch_size": 1}, eval={"batch_size": 1}, tune={"method": "lora"})
    with pytest.raises(OutOfMemory) as caught, memory_explained(least):
        raise MemoryError
    assert "micro_batch_size=0" not in str(caught.value)
    assert "batch_size=0" not in str(caught.value)
    assert "tune.method" not in str(caught.value)


def test_other_errors_pass() -> None:
    with pytest.raises(RuntimeError, match="shape mismatch"), memory_explained(recipe()):
        raise RuntimeError("shape mismatch")


def test_torch_says_what_is_looked_for() -> None:
    with pytest.raises(OutOfMemory), memory_explained(recipe()):
        torch.empty(2**60, dtype=torch.uint8)
