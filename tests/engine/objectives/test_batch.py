from __future__ import annotations

from dataclasses import replace

import torch
from hypothesis import given
from hypothesis import strategies as st
from support.accelerator import KIND, standin

from zoft.engine.objectives.batch import Batch, pad

Rows = list[tuple[list[int], list[int]]]  # token ids, scored columns


@st.composite
def rows(draw: st.DrawFn) -> Rows:
    drawn = []
    for ids in draw(st.lists(st.lists(st.integers(1, 99), min_size=2, max_size=7), min_size=1)):
        columns = st.sets(st.integers(1, len(ids) - 1), min_size=1)
        drawn.append((ids, sorted(draw(columns))))
    return drawn


@given(rows=rows(), spare=st.integers(0, 3))
def test_every_scored_column_is_found_again(rows: Rows, spare: int) -> None:
    width = max(len(ids) for ids, _ in rows) + spare
    batch = pad([ids for ids, _ in rows], [columns for _, columns in rows], width, examples=1)
    for ids, got in zip([ids for ids, _ in rows], batch.input_ids.tolist(), strict=True):
        assert got == ids + [0] * (width - len(ids))
    wanted = [(r, column) for r, (_, columns) in enumerate(rows) for column in columns]
    # A position is that of the hidden state which predicts the column: one to its left.
    assert [divmod(p, width) for p in batch.positions.tolist()] == [(r, c - 1) for r, c in wanted]
    assert batch.targets.tolist() == [rows[r][0][c] for r, c in wanted]
    assert batch.counts.tolist() == [len(columns) for _, columns in rows]


@given(rows=rows(), spare=st.integers(0, 3))
def test_the_mask_covers_the_tokens_and_nothing_else(rows: Rows, spare: int) -> None:
    width = max(len(ids) for ids, _ in rows) + spare
    batch = pad([ids for ids, _ in rows], [columns for _, columns in rows], width, examples=1)
    mask = batch.attention_mask()
    assert mask.dtype == torch.int64
    # No token of the rows is 0, the padding's.
    assert torch.equal(mask.bool(), batch.input_ids != 0)
    assert batch.tokens == sum(len(ids) for ids, _ in rows)


@given(examples=st.integers(1, 5), options=st.integers(1, 4), first=st.integers(0, 40))
def test_every_row_knows_its_example_in_the_whole_batch(
    examples: int, options: int, first: int
) -> None:
    batch = pad([[5, 6]] * (examples * options), [[1]] * (examples * options), 3, examples=examples)
    batch = replace(batch, first=first)
    assert batch.example_of_row == [first + row // options for row in range(examples * options)]


def test_a_move_takes_all_but_the_positions_along_and_waits_for_nothing() -> None:
    bare = pad([[5, 6]], [[1]], 3, examples=1)
    full = pad([[5, 6]], [[1]], 3, examples=1, labels=torch.tensor([0]), vocab=torch.tensor([6]))
    with standin() as card:
        moves = [(batch, batch.to(torch.device(KIND, 0))) for batch in (bare, full)]
        assert card.synchronisations == card.faults == []
    for batch, moved in moves:
        for name in Batch.__dataclass_fields__:
            before, after = getattr(batch, name), getattr(moved, name)
            if isinstance(before, torch.Tensor):
                assert after.device.type == ("cpu" if name == "positions" else KIND), name
            else:
                assert after == before, name
