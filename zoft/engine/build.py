"""The parts of a run that sections of the recipe choose."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch

from zoft.data.examples import Example, length
from zoft.data.order import Order
from zoft.engine.estimator import Estimator
from zoft.engine.offload.stream import stream
from zoft.engine.offload.streamer import Streamer
from zoft.engine.optimizers.update import Tuned
from zoft.engine.probe.structures.table import directions_of
from zoft.engine.probe.view import ProbedModel
from zoft.models.load import Loaded
from zoft.models.storage.safetensors import Stored
from zoft.recipe.schema import Recipe


def streamer_for(
    recipe: Recipe,
    loaded: Loaded,
    tuned: Sequence[Tuned],
    moments: dict[str, Stored],
    *,
    slots: int,
    working: Path,
    say: Callable[[str], None],
) -> Streamer | None:
    """What runs the blocks that `loaded` left in their files; None if it left none.

    `moments` are the stored ones of a checkpoint; `working` is where changed blocks go.
    """
    if not loaded.blocks:
        return None
    assert recipe.model.residency in ("host", "disk")
    assert recipe.offload.writeback != "auto"
    return stream(
        loaded.blocks,
        tuned,
        recipe.optimizer.state(),
        {**loaded.sources, **moments},
        residency=recipe.model.residency,
        device=torch.device(recipe.device),
        slots=slots,
        writeback=recipe.offload.writeback,
        working=working,
        say=say,
    )


def estimator_for(recipe: Recipe, view: ProbedModel) -> Estimator:
    settings = recipe.optimizer
    assert isinstance(settings.perturbation, float)
    return Estimator(
        view,
        directions_of(settings, recipe.seed),
        perturbation=settings.perturbation,
        count=settings.directions,
        sides=settings.sides,
        examples=recipe.train.batch_size if settings.scope == "example" else None,
        paired=settings.paired is True,
    )


def order_for(recipe: Recipe, train_set: Sequence[Example]) -> Order:
    lengths = np.array([length(example) for example in train_set])
    grouped = lengths if recipe.train.group_by_length else None
    return Order(recipe.seed, recipe.train.batch_size, len(train_set), grouped)
