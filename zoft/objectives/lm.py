"""`lm`: cross-entropy of the supervised tokens."""

from __future__ import annotations

from collections.abc import Sequence as Many

import torch
from torch import Tensor, nn

from zoft.data.examples import Example, Sequence
from zoft.objectives.batch import Batch, pad
from zoft.objectives.score import Score

ROWS = 1024  # logits rows turned to float32 at a time: 0.2 GB at a vocabulary of 50,000


def width(examples: Many[Example]) -> int:
    return max(len(x.ids) for x in examples if isinstance(x, Sequence))


def collate(examples: Many[Example], width: int) -> Batch:
    """One row per example."""
    sequences = [x for x in examples if isinstance(x, Sequence)]
    return pad(
        [x.ids for x in sequences],
        [x.supervised for x in sequences],
        width,
        examples=len(sequences),
    )


def score(logits: Tensor, batch: Batch) -> Score:
    """logits (N, V); weight = supervised tokens."""
    losses = token_losses(logits, batch.targets)
    return Score(losses.double().sum().item(), float(losses.numel()))


def token_losses(logits: Tensor, targets: Tensor) -> Tensor:
    """-log p of each target, float32 (N,). In float16 a loss near 4 has an ulp of 4e-3."""
    parts = [
        nn.functional.cross_entropy(some.float(), wanted, reduction="none")
        for some, wanted in zip(torch.split(logits, ROWS), torch.split(targets, ROWS), strict=True)
    ]
    return torch.cat(parts)
