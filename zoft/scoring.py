"""Scores of a whole data set."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch

from zoft.data.examples import Example
from zoft.objectives.objective import Objective
from zoft.objectives.score import Score
from zoft.zo.probe import View


def score(
    view: View,
    objective: Objective,
    examples: Sequence[Example],
    *,
    batch_size: int,
    masked: bool,
    device: torch.device,
    between: Callable[[], None] = lambda: None,
) -> Score:
    """The score of all examples at the current weights, batched by length to spare the padding.

    `between` is called after each batch: to show progress, or to stop by raising.
    """
    ordered = sorted(examples, key=lambda example: objective.width([example]))
    total: Score | None = None
    with view.plain():
        for i in range(0, len(ordered), batch_size):
            batches = objective.batches(ordered[i : i + batch_size], batch_size, device)
            part = objective.evaluate(view, batches, masked=masked)
            total = part if total is None else total + part
            between()
    assert total is not None  # data.encode leaves no set empty
    return total


def needs_mask(
    view: View, objective: Objective, examples: Sequence[Example], device: torch.device
) -> bool:
    """Whether this model needs an attention mask over right padding (METHODS section 6, rule 9).

    With causal attention no scored position can see a pad, so both passes agree up to rounding;
    looked at on a first batch instead of believed.
    """
    by_length = sorted(examples, key=lambda example: objective.width([example]))
    [batch] = objective.batches([by_length[0], by_length[-1]], 2, device)
    if int(batch.lengths.min()) == batch.input_ids.shape[1]:
        return False  # no padding to tell them apart by
    with view.plain():
        bare, masked = (
            view.logits(batch.input_ids, batch.positions, batch.vocab, mask).float()
            for mask in (None, batch.attention_mask())
        )
    tolerance = 1e-3 if view.compute_dtype == torch.float32 else 5e-2
    difference = (bare - masked).abs().max()
    return bool(difference > tolerance * masked.abs().max())
