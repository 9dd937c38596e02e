"""The objectives there are, and a batch's losses and score under any of them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from zoft.data.examples import Example
from zoft.engine.estimator import Losses
from zoft.engine.objectives.batch import Batch, Forward
from zoft.engine.objectives.choice import ChoiceObjective
from zoft.engine.objectives.lm import LMObjective
from zoft.engine.objectives.score import Score

# Each has three methods. `width(examples)`: tokens of the longest row. `collate(examples, width)`: a
# Batch on the CPU, its rows padded to `width`. `losses(view, batch, mask)`: the Losses of each example
# at the weights that the open probe shows, and which examples hit, (copies, B) bool, or None.
Objective = LMObjective | ChoiceObjective
OBJECTIVES: dict[str, Objective] = {"lm": LMObjective(), "choice": ChoiceObjective()}


def objective_for(name: str) -> Objective:
    """The objective of that name; what `auto` means is settled in `recipe.resolved`."""
    return OBJECTIVES[name]


def micro_batches(
    objective: Objective, examples: Sequence[Example], size: int, device: torch.device
) -> list[Batch]:
    """Batches of at most `size` examples, all padded to the width of the whole."""
    width = objective.width(examples)
    return [
        replace(objective.collate(examples[i : i + size], width), first=i).to(device)
        for i in range(0, len(examples), size)
    ]


def batch_losses(objective: Objective, view: Forward, batches: Sequence[Batch]) -> Losses:
    """The losses of a batch given as micro-batches, by one forward pass for each of them.

    They run inside the probe that is open.
    """
    found = []
    for batch in batches:
        losses, _ = objective.losses(view, batch, _mask(view, batch))
        found.append(losses)
    return Losses(
        torch.cat([part.sums for part in found], dim=1),
        torch.cat([part.weights for part in found]),
    )


def batch_score(objective: Objective, view: Forward, batch: Batch) -> Score:
    """The score of `batch` at the weights that the open probe shows."""
    found, hits = objective.losses(view, batch, _mask(view, batch))
    rows = [found.sums, found.weights[None], *([] if hits is None else [hits.double()])]
    sums, weights, *hit = torch.cat(rows).tolist()  # one transfer
    total = math.fsum(sums) if all(map(math.isfinite, sums)) else math.nan
    return Score(total, math.fsum(weights), int(sum(hit[0])) if hit else None)


def _mask(view: Forward, batch: Batch) -> Tensor | None:
    """The attention mask of a batch, if the model needs one."""
    return batch.attention_mask() if view.masked else None
