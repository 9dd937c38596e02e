"""`lm`: cross-entropy of the supervised tokens; of rows with options, of the right one's."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from zoft.data.examples import Example, gold
from zoft.engine.estimator import Losses
from zoft.engine.objectives.batch import Batch, Forward, pad


class LMObjective:
    """One row per example, weight 1 a token, no hits."""

    def width(self, examples: Sequence[Example]) -> int:
        return max(len(gold(x).ids) for x in examples)

    def collate(self, examples: Sequence[Example], width: int) -> Batch:
        texts = [gold(x) for x in examples]
        return pad(
            [x.ids for x in texts], [x.supervised for x in texts], width, examples=len(texts)
        )

    def losses(self, view: Forward, batch: Batch, mask: Tensor | None) -> tuple[Losses, None]:
        lost = view.token_losses(
            batch.input_ids, batch.positions, batch.targets, mask, batch.example_of_row
        )
        copies = len(lost) // len(batch.targets)
        sums = torch.segment_reduce(
            lost.double(), "sum", lengths=batch.counts.repeat(copies), unsafe=True
        )
        return Losses(sums.view(copies, -1), batch.counts.double()), None
