from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from zoft.engine.offload.arenas import ALIGN, PAGE, layout_of, nbytes, new_arena

CPU = torch.device("cpu")
DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.uint8, torch.int64)
SHAPES = st.lists(st.integers(0, 40), max_size=3).map(tuple)
ENTRIES = st.lists(st.tuples(st.sampled_from(DTYPES), SHAPES), max_size=6)


@given(changing=ENTRIES, frozen=ENTRIES)
def test_tensors_lie_side_by_side_what_changes_first(changing: list, frozen: list) -> None:  # type: ignore[type-arg]
    layout = layout_of(
        {f"c{i}": entry for i, entry in enumerate(changing)},
        {f"f{i}": entry for i, entry in enumerate(frozen)},
    )
    assert layout.size % PAGE == layout.changed % PAGE == 0
    assert layout.changed <= layout.size
    arena = new_arena(layout.size, CPU)
    arena.fill_(0)
    views = layout.views(arena)
    end = 0
    for name, entry in layout.entries.items():
        begin = layout.offsets[name]
        assert begin % ALIGN == 0
        assert begin >= end
        end = begin + nbytes(entry)
        assert end <= (layout.changed if name[0] == "c" else layout.size)
        assert (views[name].dtype, tuple(views[name].shape)) == entry
        views[name].view(-1).view(torch.uint8).fill_(1)
    assert int(arena.sum()) == sum(map(nbytes, layout.entries.values()))


def test_an_arena_begins_on_a_page_and_goes_back_to_the_system() -> None:
    arenas = [new_arena(size, CPU) for size in (0, 1, PAGE, 3 * PAGE)]
    assert [arena.numel() for arena in arenas] == [0, 1, PAGE, 3 * PAGE]
    assert all(arena.data_ptr() % PAGE == 0 for arena in arenas if arena.numel())


def test_memory_of_a_gpu_is_free_before_another_stream_gets_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    calls: list[str] = []
    gpu, empty = torch.device("cuda", 0), torch.empty

    def allocate(size: int, **_options: object) -> torch.Tensor:
        calls.append("empty")
        return empty(size, dtype=torch.uint8)

    monkeypatch.setattr(torch, "empty", allocate)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda device: calls.append(str(device)))
    assert new_arena(7, gpu).numel() == 7
    assert calls == ["empty", "cuda:0"]
