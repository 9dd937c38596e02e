"""The parts that take a step, made from a resolved recipe: probes, update rule, streaming, order."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from peft import PeftModel
from transformers import PreTrainedModel

from zoft.data.examples import Example, length
from zoft.data.order import Order
from zoft.engine.estimator import Estimator, Losses
from zoft.engine.objectives.batch import Batch
from zoft.engine.objectives.objective import Objective, batch_losses, micro_batches
from zoft.engine.offload.stream import stream
from zoft.engine.offload.streamer import Streamer
from zoft.engine.optimizers.optimizer import Optimizer
from zoft.engine.optimizers.update import Tuned, Weights
from zoft.engine.probe.structures.table import directions_of
from zoft.engine.probe.view import ProbedModel
from zoft.engine.tail.blocks import LastBlocks
from zoft.engine.tail.moving import MovingTail
from zoft.engine.tail.update import FactoredRMS
from zoft.models.blocks import find_blocks
from zoft.models.load import Loaded
from zoft.models.storage.safetensors import Stored
from zoft.models.trainable import tail_parameters
from zoft.recipe.resolved import Resolved


@dataclass(frozen=True)
class Engine:
    """All that takes steps: the model and its probes, the objective, the update rule on the weights."""

    model: PreTrainedModel | PeftModel
    device: torch.device
    view: ProbedModel
    estimator: Estimator
    objective: Objective
    optimizer: Optimizer
    weights: Weights
    streamer: Streamer | None
    tail: MovingTail | None = None

    def batches(self, examples: Sequence[Example], size: int) -> list[Batch]:
        """Micro-batches of at most `size` examples, of equal width, on the device."""
        return micro_batches(self.objective, examples, size, self.device)

    def losses_of(self, batches: Sequence[Batch]) -> Callable[[], Losses]:
        """The loss of every example at the weights that the open probe shows, when it is called."""
        return partial(batch_losses, self.objective, self.view, batches)

    def with_pairing(self, paired: bool) -> Engine:
        """The engine that runs both signs of a probe as one batch, or one after the other."""
        return replace(self, estimator=replace(self.estimator, paired=paired))

    @property
    def waited(self) -> float:
        """Seconds so far that the computation stood still for a streamed block."""
        return self.streamer.executor.waited if self.streamer else 0.0

    def close(self) -> None:
        """Stop streaming. What streamed weights were is in the journal."""
        if self.streamer:
            self.streamer.close()


def streamer_for(
    recipe: Resolved,
    loaded: Loaded,
    tuned: Sequence[Tuned],
    moments: dict[str, Stored],
    *,
    residency: Literal["host", "disk"],
    slots: int,
    working: Path,
    say: Callable[[str], None],
) -> Streamer | None:
    """What runs the blocks that `loaded` left in their files; None if it left none.

    `moments` are the stored ones of a checkpoint; `working` is where changed blocks go.
    """
    if not loaded.blocks:
        return None
    return stream(
        loaded.blocks,
        tuned,
        recipe.optimizer.state(),
        {**loaded.sources, **moments},
        residency=residency,
        device=torch.device(recipe.device),
        slots=slots,
        writeback=recipe.offload.writeback,
        working=working,
        say=say,
    )


def estimator_for(recipe: Resolved, view: ProbedModel) -> Estimator:
    settings = recipe.optimizer
    return Estimator(
        view,
        directions_of(settings, recipe.seed),
        perturbation=settings.perturbation,
        count=settings.directions,
        sides=settings.sides,
        examples=recipe.train.batch_size if settings.scope == "example" else None,
        paired=settings.paired is True,
    )


def tail_for(recipe: Resolved, view: ProbedModel) -> MovingTail | None:
    """What moves by exact gradients with every step, on the device; None if nothing does."""
    parameters = tail_parameters(view.model, recipe.tune)
    if not parameters:
        return None
    stack = find_blocks(view.model).modules
    blocks = LastBlocks(view, stack, recipe.tune.tail_blocks or 0, parameters)
    return MovingTail(blocks, FactoredRMS(recipe.seed), recipe.tune.tail_lr)


def order_for(recipe: Resolved, train_set: Sequence[Example]) -> Order:
    lengths = np.array([length(example) for example in train_set])
    grouped = lengths if recipe.train.group_by_length else None
    return Order(recipe.seed, recipe.train.batch_size, len(train_set), grouped)
