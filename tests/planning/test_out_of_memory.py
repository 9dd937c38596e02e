from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch
from support import small
from support.recipes import recipe as minimal

from zoft.errors import OutOfMemory
from zoft.planning.out_of_memory import memory_explained, requested_bytes
from zoft.planning.resolve import resolve
from zoft.recipe.load import load_recipe
from zoft.recipe.resolved import Resolved
from zoft.system.device import peak_memory_bytes


def recipe(**sections: Any) -> Resolved:
    train = {"batch_size": 8, "micro_batch_size": 8}
    return resolve(minimal(**{"train": train, **sections}), absent=True)


def test_the_peak_is_in_bytes() -> None:
    status = Path("/proc/self/status").read_text()
    [peak] = [line.split()[1] for line in status.splitlines() if line.startswith("VmHWM:")]
    assert peak_memory_bytes(torch.device("cpu")) == pytest.approx(int(peak) * 1024, rel=0.05)


@pytest.mark.parametrize(
    ("error", "asked"),
    [
        (MemoryError(), "more was asked for"),
        (
            torch.cuda.OutOfMemoryError(
                "CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 ..."
            ),
            "2.00 GiB more were asked for",
        ),
        (
            RuntimeError(
                "[enforce fail at alloc_cpu.cpp:127] data. DefaultCPUAllocator: can't allocate "
                "memory: you tried to allocate 3221225472 bytes. Error code 12"
            ),
            "3.00 GiB more were asked for",
        ),
    ],
)
def test_what_was_asked_for_and_what_was_free(error: Exception, asked: str) -> None:
    with pytest.raises(OutOfMemory) as caught, memory_explained(recipe()):
        raise error
    assert re.fullmatch(
        rf"out of memory: {asked}, \d+\.\d\d GiB are free; try train.micro_batch_size=4, "
        "eval.batch_size=16, tune.method=lora",
        str(caught.value),
    )


def test_the_changes_that_would_fit_are_named_with_what_they_take(tmp_path: Path) -> None:
    path = small.write(tmp_path)

    def variant(*more: str) -> Resolved:
        return resolve(load_recipe(path, more))

    made = variant()
    with pytest.raises(OutOfMemory) as caught, memory_explained(made, variant):
        raise RuntimeError("CUDA out of memory. Tried to allocate 10 KiB")
    # There is room enough, so whatever takes less than now would fit.
    assert "would fit: " in str(caught.value)
    assert re.search(r"train\.micro_batch_size=1 \(0\.\d\d GiB\)", str(caught.value))


def test_where_nothing_would_fit_it_is_said(tmp_path: Path) -> None:
    path = small.write(tmp_path)

    def variant(*more: str) -> Resolved:
        return resolve(load_recipe(path, ["memory.device_budget=1MB", *more]))

    with pytest.raises(OutOfMemory, match="no single change"), memory_explained(variant(), variant):
        raise MemoryError


def test_a_failing_estimate_hides_nothing() -> None:
    made = recipe()  # of a model that does not exist
    with (
        pytest.raises(OutOfMemory, match=r"try train\.micro_batch_size=4"),
        memory_explained(made, lambda *_: made),
    ):
        raise MemoryError


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


def test_the_request_is_read_from_torchs_own_message() -> None:
    with pytest.raises(RuntimeError) as caught:
        torch.empty(2**60, dtype=torch.uint8)
    assert requested_bytes(str(caught.value)) == 2**60
    assert requested_bytes("out of memory") == 0
