"""From examples to a loss: the one place that knows which objectives there are."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from zoft.data.examples import Example
from zoft.objectives import choice, lm
from zoft.objectives.batch import Batch
from zoft.objectives.score import Score
from zoft.zo.probe import View


@dataclass(frozen=True)
class Objective:
    """`width(examples)` tokens, `collate(examples, width)` to a batch, `score(logits, batch)`."""

    width: Callable[[Sequence[Example]], int]
    collate: Callable[[Sequence[Example], int], Batch]
    score: Callable[[Tensor, Batch], Score]

    def batches(self, examples: Sequence[Example], size: int, device: torch.device) -> list[Batch]:
        """Micro-batches of at most `size` examples, all padded to the width of the whole."""
        width = self.width(examples)
        parts = [examples[i : i + size] for i in range(0, len(examples), size)]
        return [self.collate(part, width).to(device) for part in parts]

    def evaluate(self, view: View, batches: Sequence[Batch], *, masked: bool) -> Score:
        """One forward pass per batch, inside the probe that is open; sums in the given order."""
        total: Score | None = None
        for batch in batches:
            mask = batch.attention_mask() if masked else None
            logits = view.logits(batch.input_ids, batch.positions, batch.vocab, mask)
            part = self.score(logits, batch)
            total = part if total is None else total + part
        assert total is not None
        return total


def objective_for(name: Literal["choice", "lm"]) -> Objective:
    module = {"choice": choice, "lm": lm}[name]
    return Objective(module.width, module.collate, module.score)
