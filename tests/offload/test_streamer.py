"""Streamed models against resident ones: the same bits of losses, weights and moments."""

from __future__ import annotations

from functools import cache, partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
import tiny
import torch
from streamed import rig
from torch import Tensor

STEPS = 4
TIED = partial(tiny.llama, tie=True)
UNTIED = partial(tiny.qwen2, tie=False)
MODELS = {
    "opt": tiny.opt, "llama": tiny.llama, "llama tied": TIED,
    "gpt2": tiny.gpt2, "qwen2": tiny.qwen2, "qwen2 untied": UNTIED,
}  # fmt: skip
# road, slots, who writes back
WAYS = [
    *(("file", slots, "device") for slots in (1, 2, 3, 4)),
    *(("memory", slots, writeback) for slots in (1, 2, 4) for writeback in ("device", "host")),
    *(("staged", slots, "device") for slots in (1, 3, 4)),
    ("staged memory", 2, "device"),
    ("staged memory", 2, "host"),
]


def run(folder: Path, steps: int = STEPS, **settings: Any) -> tuple[list[float], dict[str, Tensor]]:
    with rig(folder, **settings) as made:
        for number in range(1, steps + 1):
            made.step(number)
        return made.losses, made.tensors()


@cache
def resident(name: str, **settings: Any) -> tuple[list[float], dict[str, Tensor]]:
    with TemporaryDirectory() as folder:
        return run(Path(folder), build=MODELS[name], **settings)


def same(one: tuple[list[float], dict[str, Tensor]], other: Any) -> None:
    assert one[0] == other[0]
    assert one[1].keys() == other[1].keys()
    for name, tensor in one[1].items():
        assert tensor.dtype == other[1][name].dtype
        assert torch.equal(tensor, other[1][name]), name


def equal(folder: Path, name: str, way: tuple[str, int, str], **settings: Any) -> None:
    road, slots, writeback = way
    streamed = run(
        folder, build=MODELS[name], road=road, slots=slots, writeback=writeback, **settings
    )
    same(resident(name, **settings), streamed)


@pytest.mark.parametrize("way", WAYS, ids=lambda way: "-".join(map(str, way)))
@pytest.mark.parametrize("optimizer", ["scalar", "full"])
def test_every_way_gives_the_bits_of_a_resident_model(
    tmp_path: Path, way: tuple[str, int, str], optimizer: str
) -> None:
    equal(tmp_path, "llama", way, optimizer=optimizer)


@pytest.mark.parametrize("way", WAYS, ids=lambda way: "-".join(map(str, way)))
@pytest.mark.parametrize("tune", ["lora", "some"])
def test_every_way_with_frozen_weights_in_the_blocks(
    tmp_path: Path, way: tuple[str, int, str], tune: str
) -> None:
    equal(tmp_path, "llama", way, tune=tune)


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize(
    "way", [("file", 3, "device"), ("memory", 2, "host")], ids=["file", "host"]
)
@pytest.mark.parametrize("tune", ["full", "lora"])
def test_every_kind_of_model(
    tmp_path: Path, name: str, way: tuple[str, int, str], tune: str
) -> None:
    equal(tmp_path, name, way, tune=tune)


@pytest.mark.parametrize("optimizer", ["scalar", "window", "full", "mezo"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("paired", [False, True], ids=["two passes", "paired"])
def test_every_rule_and_type(
    tmp_path: Path, optimizer: str, dtype: torch.dtype, paired: bool
) -> None:
    settings = {"optimizer": optimizer, "dtype": dtype, "paired": paired}
    equal(tmp_path, "opt", ("file", 2, "device"), **settings)
    equal(tmp_path, "opt", ("memory", 2, "host"), **settings)
