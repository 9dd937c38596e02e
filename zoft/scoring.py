"""Scores of a whole data set."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import nn

from zoft.data.examples import Example
from zoft.errors import DataError
from zoft.objectives.objective import Objective
from zoft.objectives.score import Score
from zoft.zo.probe import View

LOOKED_AT = 64  # positions at which a pass with an attention mask is compared with one without


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
            [batch] = objective.batches(ordered[i : i + batch_size], batch_size, device)
            part = objective.score(view, batch, masked=masked)
            total = part if total is None else total + part
            between()
    assert total is not None  # data.encode leaves no set empty
    return total


def require_fits(model: nn.Module, examples: Sequence[Example], objective: Objective) -> None:
    """Raise DataError if an example is longer than the model has positions, or has unknown tokens."""
    config: Any = model.config
    positions = getattr(config, "max_position_embeddings", None)
    longest = objective.width(examples)
    if positions is not None and longest > positions:
        raise DataError(
            f"the longest example has {longest} tokens, the model has {positions} positions: set "
            f"data.max_length={positions} and data.on_overflow=truncate (or drop)"
        )
    table = model.get_input_embeddings().weight.shape[0]  # type: ignore[operator]
    largest = max(max(objective.collate([x], longest).input_ids.view(-1)) for x in examples)
    if largest >= table:
        raise DataError(
            f"the tokenizer gives token {int(largest)}, the model knows {table}: they do not belong "
            "together"
        )


def needs_mask(
    view: View, objective: Objective, examples: Sequence[Example], device: torch.device
) -> bool:
    """Whether this model needs an attention mask over right padding (METHODS section 6, rule 9).

    With causal attention no scored position can see a pad, so both passes agree up to rounding;
    looked at on a first batch instead of believed.
    """
    by_length = sorted(examples, key=lambda example: objective.width([example]))
    pair = [by_length[0], by_length[-1]]
    width = objective.width(pair)
    if objective.width(pair[:1]) == width:  # as long as each other: pad both
        config = getattr(view.model, "config", None)
        width = min(width + 1, getattr(config, "max_position_embeddings", width + 1))
    batch = objective.collate(pair, width).to(device)
    # Of all words: every position of two long texts would take gigabytes.
    some = batch.positions[:: 1 + len(batch.positions) // LOOKED_AT]
    with view.plain():
        bare, masked = (
            view.logits(batch.input_ids, some, batch.vocab, mask).float()
            for mask in (None, batch.attention_mask())
        )
    tolerance = 1e-3 if view.compute_dtype == torch.float32 else 5e-2
    difference = (bare - masked).abs().max()
    return bool(difference > tolerance * masked.abs().max())
