from __future__ import annotations

import json
import os
import struct
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import save_file
from torch import Tensor

from zoft.errors import EnvironmentProblem
from zoft.models.storage import safetensors as safetensors_files
from zoft.models.storage.safetensors import Reader, Writer, stored_tensors

DTYPES = list(safetensors_files._DTYPES.values())
NAMES = ["b", "a", "model.layers.10.w", "model.layers.2.w", "é", 'with "quotes"\n', "z"]


def tensor(dtype: torch.dtype, shape: tuple[int, ...], seed: int = 0) -> Tensor:
    """Random bits; booleans are 0 and 1."""
    count = torch.Size(shape).numel() * dtype.itemsize
    raw = torch.randint(0, 256, (count,), generator=torch.Generator().manual_seed(seed))
    if dtype == torch.bool:
        raw %= 2
    return raw.to(torch.uint8).view(dtype).view(shape)


def bits(values: Tensor) -> list[int]:
    return values.contiguous().view(-1).view(torch.uint8).tolist()


def entries(tensors: dict[str, Tensor]) -> dict[str, safetensors_files.Entry]:
    return {name: (t.dtype, tuple(t.shape)) for name, t in tensors.items()}


def save(folder: Path, tensors: dict[str, Tensor]) -> Path:
    file = folder / "model.safetensors"
    save_file(tensors, file, metadata={"format": "pt"})
    return file


def write(path: Path, tensors: dict[str, Tensor], metadata: dict[str, str] | None = None) -> None:
    """In another order than they come to lie in."""
    with Writer(path, entries(tensors), metadata) as file:
        for name in sorted(tensors, reverse=True):
            file.put(name, tensors[name])


@given(
    st.dictionaries(
        st.sampled_from(NAMES),
        st.tuples(st.sampled_from(DTYPES), st.lists(st.integers(0, 5), max_size=3)),
    ),
    st.sampled_from([None, {"format": "pt"}]),
)
def test_what_is_written_is_what_the_package_writes(
    tmp_path_factory: pytest.TempPathFactory,
    kinds: dict[str, tuple[torch.dtype, list[int]]],
    metadata: dict[str, str] | None,
) -> None:
    folder = tmp_path_factory.mktemp("files")
    tensors = {name: tensor(dtype, tuple(shape)) for name, (dtype, shape) in kinds.items()}
    save_file(tensors, folder / "theirs", metadata=metadata)
    write(folder / "ours", tensors, metadata)
    assert (folder / "ours").read_bytes() == (folder / "theirs").read_bytes()


def test_long_tensors_are_written_in_pieces(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(safetensors_files, "_PIECE", 1000)
    tensors = {"a": tensor(torch.bfloat16, (700, 3)), "t": tensor(torch.float32, (50, 20)).T}
    write(tmp_path / "ours", tensors)
    save_file({name: t.contiguous() for name, t in tensors.items()}, tmp_path / "theirs")
    assert (tmp_path / "ours").read_bytes() == (tmp_path / "theirs").read_bytes()


def test_what_is_not_as_announced_is_refused(tmp_path: Path) -> None:
    announced = {"a": (torch.float32, (2,))}
    with (
        pytest.raises(ValueError, match=r"a is torch\.float32"),
        Writer(tmp_path / "x", announced) as f,
    ):
        f.put("a", torch.zeros(3))
    with pytest.raises(ValueError, match="lacks a"), Writer(tmp_path / "x", announced):
        pass
    with Writer(tmp_path / "x", announced) as f:
        f.put("a", torch.zeros(2))
        with pytest.raises(KeyError):
            f.put("a", torch.zeros(2))


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_tensor_is_read_into_memory_that_is_there(
    tmp_path: Path, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(safetensors_files, "_PIECE", 48)
    tensors = {
        "odd": tensor(dtype, (37, 3)),
        "empty": tensor(dtype, (0, 3)),
        "one": tensor(dtype, ()),
    }
    save(tmp_path, tensors)
    stored = stored_tensors(tmp_path)
    assert set(stored) == set(tensors)
    arena = torch.full((4096,), 0xAA, dtype=torch.uint8)
    with Reader() as reader:
        for name, values in tensors.items():
            assert stored[name].nbytes == values.nbytes
            room = arena[512 : 512 + values.nbytes].view(dtype).view(values.shape)
            reader.read(stored[name], room)
            assert bits(room) == bits(values), name
    assert arena[:512].eq(0xAA).all()
    assert arena[512 + 37 * 3 * dtype.itemsize :].eq(0xAA).all()


@pytest.mark.parametrize(
    ("kept", "wanted"),
    [
        (torch.float16, torch.bfloat16),
        (torch.float32, torch.float16),
        (torch.bfloat16, torch.float32),
        (torch.float64, torch.float32),
    ],
)
def test_another_type_is_converted_in_pieces(
    tmp_path: Path, kept: torch.dtype, wanted: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(safetensors_files, "_PIECE", 96)
    values = torch.randn(37, 3, generator=torch.Generator().manual_seed(0)).to(kept)
    save(tmp_path, {"a": values})
    out = torch.empty(37, 3, dtype=wanted)
    with Reader() as reader:
        reader.read(stored_tensors(tmp_path)["a"], out)
    assert bits(out) == bits(values.to(wanted))


def test_shards_are_one_model(tmp_path: Path) -> None:
    for file, name in (("one.safetensors", "a"), ("two.safetensors", "b")):
        save_file({name: torch.ones(3)}, tmp_path / file)
    index = {"weight_map": {"a": "one.safetensors", "b": "two.safetensors"}}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    stored = stored_tensors(tmp_path)
    assert {name: s.file.name for name, s in stored.items()} == index["weight_map"]
    out = torch.zeros(3)
    with Reader() as reader:
        reader.read(stored["b"], out)
        reader.close()  # what is closed opens again
        reader.read(stored["a"], out)
    assert out.eq(1).all()


def test_pages_that_were_read_are_given_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = save(tmp_path, {"a": tensor(torch.uint8, (5000,))})
    begin = stored_tensors(tmp_path)["a"].begin
    ranges: list[tuple[int, int]] = []

    def advise(descriptor: int, start: int, length: int, advice: int) -> None:
        assert Path(f"/proc/self/fd/{descriptor}").readlink() == file
        assert advice == os.POSIX_FADV_DONTNEED
        ranges.append((start, start + length))

    monkeypatch.setattr(os, "posix_fadvise", advise)
    monkeypatch.setattr(safetensors_files, "_PIECE", 2000)
    for drop_pages in (False, True):
        with Reader(drop_pages=drop_pages) as reader:
            reader.read(stored_tensors(tmp_path)["a"], torch.empty(5000, dtype=torch.uint8))
    assert [end for _, end in ranges] == [begin + 2000, begin + 4000, begin + 5000]
    assert all(start <= begin for start, _ in ranges)


def contradict(file: Path) -> None:
    header = {"a": {"dtype": "F32", "shape": [3], "data_offsets": [0, 8]}}
    text = json.dumps(header).encode()
    file.write_bytes(struct.pack("<Q", len(text)) + text + bytes(8))


def rename_type(file: Path) -> None:
    file.write_bytes(file.read_bytes().replace(b'"F32"', b'"F3!"'))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (Path.unlink, "No such file"),
        (lambda file: os.truncate(file, 100), "cut short"),
        (lambda file: os.truncate(file, 4), "cannot read"),
        (lambda file: file.write_bytes(b"\xff" * 64), "no safetensors file"),
        (lambda file: file.write_bytes(struct.pack("<Q", 8) + b"not json"), "cannot read"),
        (lambda file: file.write_bytes(struct.pack("<Q", 2) + b"[]"), "cannot read"),
        (rename_type, "unknown type F3!"),
        (contradict, "contradicts itself at a"),
    ],
)
def test_a_damaged_file_is_one_line(
    tmp_path: Path, change: Callable[[Path], None], words: str
) -> None:
    change(save(tmp_path, {"a": torch.ones(30)}))
    with pytest.raises(EnvironmentProblem, match=words) as caught:
        stored_tensors(tmp_path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("change", "words"),
    [(Path.unlink, "No such file"), (lambda file: os.truncate(file, 100), "cut short")],
)
def test_a_file_that_goes_away_is_one_line(
    tmp_path: Path, change: Callable[[Path], None], words: str
) -> None:
    file = save(tmp_path, {"a": torch.ones(30)})
    stored = stored_tensors(tmp_path)["a"]
    change(file)
    with Reader() as reader, pytest.raises(EnvironmentProblem, match=words):
        reader.read(stored, torch.empty(30))


@pytest.mark.parametrize(
    "out", [torch.empty(3), torch.empty(4, 2)[:, 0], torch.empty(4).to("meta")]
)
def test_memory_that_does_not_fit_is_refused(tmp_path: Path, out: Tensor) -> None:
    save(tmp_path, {"a": torch.ones(4)})
    with Reader() as reader, pytest.raises(ValueError, match="cannot read"):
        reader.read(stored_tensors(tmp_path)["a"], out)
