"""Models whose weights were really moved: what a probe only shows."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import replace
from functools import cache

import torch
from torch import Tensor, nn

from zoft.engine.probe.directions import Direction
from zoft.engine.probe.structures.table import values_of
from zoft.engine.probe.view import ProbedModel
from zoft.models.trainable import parameter_ids, tuned_parameters
from zoft.recipe.sections.tune import TuneSection

EXAMPLE = torch.tensor([[5, 9, 2, 7]])


def view_of(
    model: nn.Module, tune: TuneSection | None = None, compute: torch.dtype = torch.float32
) -> tuple[ProbedModel, dict[str, nn.Parameter]]:
    tuned = tuned_parameters(model, tune or TuneSection())
    return ProbedModel(model, tuned, parameter_ids(tuned), compute, EXAMPLE), tuned


def moved(
    model: nn.Module, tune: TuneSection | None, direction: Direction, scale: float
) -> nn.Module:
    """A copy of the model whose weights are W + scale * z."""
    twin = copy.deepcopy(model)
    tuned = tuned_parameters(twin, tune or TuneSection())
    ids = parameter_ids(tuned)
    for name, parameter in tuned.items():
        parameter.data += scale * values_of(direction, parameter.data, ids[name])
    return twin


@torch.no_grad()
def row_by_row(
    model: nn.Module,
    tune: TuneSection | None,
    direction: Direction,
    scales: Sequence[float],
    input_ids: Tensor,
    examples: Sequence[int] | None = None,
    count: int | None = None,
    mask: Tensor | None = None,
) -> Tensor:
    """Logits of every row, alone in a model that was moved by its own example's direction: number
    k * count + example, or `direction` itself without `examples`. (copies * R * T, V)."""

    @cache
    def twin(scale: float, example: int | None) -> nn.Module:
        z = direction
        if example is not None and count is not None:
            z = replace(direction, k=direction.k * count + example)
        return moved(model, tune, z, scale)

    logits = []
    for scale in scales:
        for i, row in enumerate(input_ids):
            alone = twin(scale, None if examples is None else examples[i])
            masked = None if mask is None else mask[i : i + 1]
            logits.append(alone(input_ids=row[None], attention_mask=masked).logits[0])
    return torch.cat(logits)
