"""Blocks in files and in memory: what is read is what was last written, or a clear error."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from zoft.engine.offload.arenas import PAGE, Layout, layout_of, new_arena
from zoft.engine.offload.homes import Files, Memory
from zoft.errors import EnvironmentProblem
from zoft.models.storage.safetensors import stored_tensors

CPU = torch.device("cpu")
F32, BF16 = torch.float32, torch.bfloat16
SHAPES = {"w": (700, 3), "norm": (5,)}


def layouts() -> dict[int, Layout]:
    """Two blocks: w is tuned, with a moment that no file has; norm is frozen, of another type."""
    return {
        b: layout_of(
            {f"{b}.w": (F32, SHAPES["w"]), f"{b}.w/exp_avg": (F32, SHAPES["w"])},
            {f"{b}.norm": (BF16, SHAPES["norm"])},
        )
        for b in (0, 3)
    }


@pytest.fixture
def files(tmp_path: Path) -> Files:
    generator = torch.Generator().manual_seed(0)
    stored = {
        f"{b}.{name}": torch.randn(shape, generator=generator)
        for b in (0, 3)
        for name, shape in SHAPES.items()
    }
    save_file(stored, tmp_path / "model.safetensors")
    return Files(layouts(), stored_tensors(tmp_path), tmp_path / "run" / "working.bin")


def arena_of(files: Files, block: int) -> torch.Tensor:
    arena = new_arena(
        files.layouts[block].size + PAGE, CPU
    )  # a slot: as large as the largest block
    arena.fill_(0xFF)
    return arena


def test_what_was_never_written_comes_from_the_models_files_and_moments_are_zero(
    files: Files, tmp_path: Path
) -> None:
    stored = load_file(tmp_path / "model.safetensors")
    for block in (3, 0):
        arena = arena_of(files, block)
        files.read(block, arena)
        views = files.layouts[block].views(arena)
        assert torch.equal(views[f"{block}.w"], stored[f"{block}.w"])
        assert torch.equal(views[f"{block}.norm"], stored[f"{block}.norm"].to(BF16))
        assert not views[f"{block}.w/exp_avg"].any()
    files.close()
    assert not files.working.exists()  # type: ignore[union-attr]


def buffered(monkeypatch: pytest.MonkeyPatch) -> None:
    """A file system that knows no direct access."""
    opened = os.open

    def refuse(path: Any, flags: int, *mode: int) -> int:
        if flags & os.O_DIRECT:
            raise OSError(errno.EINVAL, "Invalid argument")
        return opened(path, flags, *mode)

    monkeypatch.setattr(os, "open", refuse)


def in_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    """A kernel that moves a page at a time, whatever it is asked for."""
    for name in ("preadv", "pwritev"):
        call = getattr(os, name)
        monkeypatch.setattr(
            os, name, lambda file, parts, at, call=call: call(file, [parts[0][:PAGE]], at)
        )


def unreserved(monkeypatch: pytest.MonkeyPatch) -> None:
    """A file system that cannot set space aside."""

    def refuse(*_args: int) -> None:
        raise OSError(errno.EOPNOTSUPP, "Operation not supported")

    monkeypatch.setattr(os, "posix_fallocate", refuse)


@pytest.mark.parametrize("spoil", [None, buffered, in_pieces, unreserved])
def test_what_an_update_changed_comes_back_and_the_rest_from_the_models_files(
    files: Files, monkeypatch: pytest.MonkeyPatch, spoil: Callable[..., None] | None
) -> None:
    if spoil is not None:
        spoil(monkeypatch)
    written = {}
    for _ in range(2):  # the first write of a block makes its place, the second changes it
        for block in (3, 0):
            arena = arena_of(files, block)
            files.read(block, arena)
            frozen = files.layouts[block].views(arena)[f"{block}.norm"].clone()
            arena[: files.layouts[block].changed].random_(0, 256)
            written[block] = (arena[: files.layouts[block].changed].clone(), frozen)
            arena[files.layouts[block].changed :].fill_(0xFF)  # a staging: nothing came down there
            files.write(block, arena)
    for block, (changed, frozen) in written.items():
        arena = arena_of(files, block)
        files.read(block, arena)
        assert torch.equal(arena[: len(changed)], changed)
        assert torch.equal(files.layouts[block].views(arena)[f"{block}.norm"], frozen)
    assert files.working is not None
    assert files.working.stat().st_size == sum(x.changed for x in files.layouts.values())
    files.close()
    assert not files.working.exists()
    files.close()  # twice is no harm


@pytest.mark.parametrize("where", ["posix_fallocate", "pwritev"])
def test_a_full_disk_is_said_in_one_line(
    files: Files, monkeypatch: pytest.MonkeyPatch, where: str
) -> None:
    def full(*_args: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, where, full)
    with pytest.raises(EnvironmentProblem, match=r"cannot write .*working\.bin: the disk is full$"):
        files.write(0, arena_of(files, 0))
    files.close()


def test_a_working_copy_that_was_cut_short_is_said(files: Files) -> None:
    files.write(3, arena_of(files, 3))
    assert files.working is not None
    os.truncate(files.working, PAGE)
    with pytest.raises(EnvironmentProblem, match=r"cannot read .*working\.bin: it is cut short$"):
        files.read(3, arena_of(files, 3))
    files.close()


def test_a_disk_that_fails_is_said(files: Files, monkeypatch: pytest.MonkeyPatch) -> None:
    files.write(3, arena_of(files, 3))

    def broken(*_args: object) -> None:
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(os, "preadv", broken)
    with pytest.raises(EnvironmentProblem, match=r"cannot read .*working\.bin: Input/output error"):
        files.read(3, arena_of(files, 3))
    files.close()


def test_blocks_in_memory_begin_as_the_files_have_them_and_keep_what_changed(files: Files) -> None:
    memory = Memory(files.layouts, files)
    first = arena_of(files, 0)
    files.read(0, first)
    size, changed = files.layouts[0].size, files.layouts[0].changed
    arena = arena_of(files, 0)
    memory.read(0, arena)
    assert all(
        torch.equal(view, files.layouts[0].views(first)[name])
        for name, view in files.layouts[0].views(arena).items()
    )
    arena.fill_(7)
    memory.write(0, arena)
    memory.read(0, first)
    assert bool((first[:changed] == 7).all())
    assert not bool((first[changed:size] == 7).all())  # frozen: it never came
    files.close()
