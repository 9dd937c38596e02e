"""Tensors that are made of others come out of their files as torch would make them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from zoft.models.storage.gathered import Gathered, read, source_of
from zoft.models.storage.safetensors import Reader, Stored, tensors_in
from zoft.models.storage.tracing import Traced, trace

Made = Callable[[dict[str, Tensor]], Tensor]


def merged(t: dict[str, Tensor]) -> Tensor:
    """As Mixtral's: experts stacked, gate and up one after the other."""
    gate, up = (torch.stack([t[f"{n}.gate"], t[f"{n}.up"]]) for n in (0, 1))
    return torch.cat([gate, up], dim=1).contiguous()


REARRANGED: dict[str, Made] = {
    "as it is": lambda t: t["fused"][...],
    "merged": merged,
    "stacked last": lambda t: torch.stack([t["0.gate"], t["0.up"]], dim=-1),
    "side by side": lambda t: torch.cat([t["0.gate"], t["1.up"]], dim=-1),
    "a chunk": lambda t: torch.chunk(t["fused"], 3, dim=0)[1],
    "a chunk across": lambda t: torch.chunk(t["fused"], 2, dim=1)[1].contiguous(),
    "a split that is squeezed": lambda t: torch.split(t["fused"], 1, dim=0)[2].squeeze(0),
    "transposed": lambda t: t["0.gate"].transpose(0, 1).contiguous(),
    "transposed experts": lambda t: torch.transpose(t["fused"], 1, 2).contiguous(),
    "of transposed slices": lambda t: torch.stack([t["0.up"][1:3].T, t["1.up"][2:].T]),
}


@pytest.fixture
def stored(tmp_path: Path) -> tuple[dict[str, Tensor], dict[str, Stored]]:
    torch.manual_seed(0)
    shapes = {"fused": (6, 4, 5), **{f"{n}.{x}": (4, 3) for n in (0, 1) for x in ("gate", "up")}}
    tensors = {name: torch.randn(shape) for name, shape in shapes.items()}
    save_file(tensors, tmp_path / "some.safetensors")
    return tensors, tensors_in(tmp_path / "some.safetensors")


def traces(stored: dict[str, Stored]) -> dict[str, Tensor]:
    return {name: trace(name, s.dtype, s.shape) for name, s in stored.items()}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("made", REARRANGED.values(), ids=REARRANGED.keys())
def test_what_is_rearranged_is_read_from_where_it_lies(
    stored: tuple[dict[str, Tensor], dict[str, Stored]], made: Made, dtype: torch.dtype
) -> None:
    tensors, files = stored
    expected = made(tensors)
    traced = made(traces(files))
    assert isinstance(traced, Traced)
    assert (traced.shape, traced.dtype) == (expected.shape, expected.dtype)
    assert traced.pieces is not None
    out = torch.full(expected.shape, float("nan"), dtype=dtype)
    with Reader() as reader:
        read(reader, source_of(traced.shape, traced.pieces, files), out)
    assert torch.equal(out, expected.to(dtype))


def test_a_contiguous_part_of_a_tensor_is_a_range_of_its_file(
    stored: tuple[dict[str, Tensor], dict[str, Stored]],
) -> None:
    _, files = stored

    def source(made: str) -> object:
        traced = REARRANGED[made](traces(files))
        assert isinstance(traced, Traced)
        assert traced.pieces is not None
        return source_of(traced.shape, traced.pieces, files)

    whole = files["fused"]
    assert source("as it is") == whole
    assert source("a chunk") == Stored(
        whole.file, whole.begin + 2 * 4 * 5 * 4, whole.dtype, (2, 4, 5)
    )
    assert isinstance(source("merged"), Gathered)


@pytest.mark.parametrize(
    "made",
    [
        lambda t: t["fused"] + 1,
        lambda t: t["fused"].mul_(2),
        lambda t: torch.cat([t["0.gate"] * 2, t["0.up"]]),
        lambda t: t["0.gate"].reshape(2, 2, 3).transpose(0, 1).reshape(4, 3),
    ],
    ids=["a sum", "in place", "a part of it", "interleaved"],
)
def test_what_is_computed_lies_nowhere(
    stored: tuple[dict[str, Tensor], dict[str, Stored]], made: Made
) -> None:
    traced = made(traces(stored[1]))
    assert isinstance(traced, Traced)
    assert traced.pieces is None


def test_equality_of_numbers_that_nobody_knows_is_not_claimed(
    stored: tuple[dict[str, Tensor], dict[str, Stored]],
) -> None:
    one = traces(stored[1])
    assert not torch.equal(one["0.gate"], one["1.gate"])
