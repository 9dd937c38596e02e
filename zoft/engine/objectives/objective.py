"""From examples to a loss: the one place that knows which objectives there are."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor

from zoft.data.examples import Example
from zoft.engine.estimator import Losses
from zoft.engine.objectives import choice, lm
from zoft.engine.objectives.batch import Batch
from zoft.engine.objectives.score import Score
from zoft.engine.probe.view import ProbedModel


@dataclass(frozen=True)
class Objective:
    """`width(examples)` tokens, `collate(examples, width)` to a batch, and
    `measured(view, batch, mask)`: its losses in the probe that is open, and which examples hit."""

    width: Callable[[Sequence[Example]], int]
    collate: Callable[[Sequence[Example], int], Batch]
    measured: Callable[[ProbedModel, Batch, Tensor | None], tuple[Losses, Tensor | None]]

    def batches(self, examples: Sequence[Example], size: int, device: torch.device) -> list[Batch]:
        """Micro-batches of at most `size` examples, all padded to the width of the whole."""
        width = self.width(examples)
        return [
            replace(self.collate(examples[i : i + size], width), first=i).to(device)
            for i in range(0, len(examples), size)
        ]

    def losses(self, view: ProbedModel, batches: Sequence[Batch]) -> Losses:
        """One forward pass per batch, inside the probe that is open; examples in the given order."""
        found = [self._measured(view, batch)[0] for batch in batches]
        return Losses(
            torch.cat([part.sums for part in found], dim=1),
            torch.cat([part.weights for part in found]),
        )

    def score(self, view: ProbedModel, batch: Batch) -> Score:
        """What `batch` amounts to at the weights that the open probe shows."""
        found, hits = self._measured(view, batch)
        [sums], weights = found.sums.tolist(), found.weights.tolist()
        total = math.fsum(sums) if all(map(math.isfinite, sums)) else math.nan
        return Score(total, math.fsum(weights), None if hits is None else int(hits.sum()))

    def _measured(self, view: ProbedModel, batch: Batch) -> tuple[Losses, Tensor | None]:
        return self.measured(view, batch, batch.attention_mask() if view.masked else None)


def objective_for(name: Literal["choice", "lm"]) -> Objective:
    module = {"choice": choice, "lm": lm}[name]
    return Objective(module.width, module.collate, module.losses)
