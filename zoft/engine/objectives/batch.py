"""Examples as tensors: right-padded rows, and the flat positions whose next token is scored."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Protocol

import torch
from torch import Tensor

from zoft.system.accelerator import send


@dataclass(frozen=True, slots=True)
class Batch:
    """R rows of T tokens, N scored positions, B examples (B = R, or R / options for `choice`).

    input_ids (R, T) · positions (N,) flat numbers row * T + column of the hidden states that go
    through the head, row after row, always on the host · targets (N,) the token that follows each ·
    counts (R,) how many positions a row has · vocab (n,) the only logits needed, or None for all ·
    labels (B,) the right option, or None · options (B,) how many of an example's R / B rows are real,
    or None for all · lengths (R,) tokens before the padding, and `tokens` of all rows ·
    examples B, numbered from `first` in the whole batch that this one is a part of.
    """

    input_ids: Tensor
    positions: Tensor
    targets: Tensor
    counts: Tensor
    lengths: Tensor
    examples: int
    tokens: int
    first: int = 0
    vocab: Tensor | None = None
    labels: Tensor | None = None
    options: Tensor | None = None

    @property
    def example_of_row(self) -> list[int]:
        """The number in the whole batch of the example that each row belongs to."""
        each = len(self.input_ids) // self.examples
        return [self.first + i for i in range(self.examples) for _ in range(each)]

    def attention_mask(self) -> Tensor:
        """(R, T) int64: 1 before the padding."""
        columns = torch.arange(self.input_ids.shape[1], device=self.input_ids.device)
        return (columns < self.lengths[:, None]).long()

    def to(self, device: torch.device) -> Batch:
        moved = {
            name: send(value, device)
            for name in self.__dataclass_fields__
            if name != "positions" and isinstance(value := getattr(self, name), Tensor)
        }
        return replace(self, **moved)  # type: ignore[arg-type]


class Forward(Protocol):
    """A model as an objective sees it: see `ProbedModel` for shapes and meanings."""

    @property
    def masked(self) -> bool: ...

    def logits(
        self,
        input_ids: Tensor,
        positions: Tensor,
        vocab: Tensor | None = None,
        attention_mask: Tensor | None = None,
        examples: Sequence[int] | None = None,
    ) -> Tensor: ...

    def token_losses(
        self,
        input_ids: Tensor,
        positions: Tensor,
        targets: Tensor,
        attention_mask: Tensor | None = None,
        examples: Sequence[int] | None = None,
    ) -> Tensor: ...


def pad(
    rows: Sequence[Sequence[int]], scored: Sequence[Sequence[int]], width: int, **fields: object
) -> Batch:
    """A batch of token rows; `scored` are the columns p >= 1 predicted from column p - 1.

    Padded on the right with token 0, which causal attention never shows to a scored position.
    """
    input_ids = torch.zeros(len(rows), width, dtype=torch.int64)
    for i, ids in enumerate(rows):
        input_ids[i, : len(ids)] = torch.tensor(ids)
    places = [(i, column) for i, columns in enumerate(scored) for column in columns]
    row = torch.tensor([i for i, _ in places], dtype=torch.int64)
    column = torch.tensor([c for _, c in places], dtype=torch.int64)
    return Batch(
        input_ids=input_ids,
        positions=row * width + column - 1,
        targets=input_ids[row, column],
        counts=torch.tensor([len(columns) for columns in scored]),
        lengths=torch.tensor([len(ids) for ids in rows]),
        tokens=sum(map(len, rows)),
        **fields,  # type: ignore[arg-type]
    )
