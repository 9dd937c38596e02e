"""The loop: measure, write it down, move the weights. The order is what makes a kill harmless."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from safetensors.torch import load_file

from zoft.data.examples import Example
from zoft.data.order import Order
from zoft.engine.build import Engine
from zoft.engine.objectives.batch import Batch
from zoft.engine.optimizers.lr_schedule import learning_rate
from zoft.engine.optimizers.measurement import Measurement
from zoft.engine.tail.moving import STATE as TAIL_STATE
from zoft.errors import Diverged
from zoft.recipe.resolved import Resolved
from zoft.runs import checkpoint
from zoft.runs.journal import Entry, Journal


@dataclass(frozen=True, slots=True)
class Step:
    """A step that was taken: its journal entry, its micro-batches, its seconds, and how many of these
    the computation stood still for a streamed block."""

    entry: Entry
    batches: Sequence[Batch]
    seconds: float
    waited: float


class Hook(Protocol):
    """Called after every step, and once before the first with None: a killed run may still owe what
    was due at the step that it reached."""

    def __call__(self, trainer: Trainer, step: Step | None) -> None: ...


@dataclass
class Trainer:
    """The state of a run between two steps: `step` steps were taken, `skipped` of them had a loss that
    was not finite, and `nonfinite` of these in a row are the latest."""

    recipe: Resolved
    engine: Engine
    train_set: Sequence[Example]
    order: Order
    check: Callable[[], None]  # raises Interrupted when the run is to stop
    step: int = 0
    skipped: int = 0
    nonfinite: int = 0

    def fit(self, journal: Journal, hooks: Sequence[Hook] = ()) -> None:
        """Take the steps that are left. Raises Diverged, also if all steps were skipped, Interrupted."""
        try:
            self._run(hooks, None)
            while self.step < self.recipe.train.steps:
                begun, waited = time.perf_counter(), self.engine.waited
                batches = self.batches(self.step + 1)
                entry = Entry(self._measured(batches), self.lr(self.step + 1))
                journal.append(entry)
                self.apply(entry)
                self._move_tail(batches)
                seconds = time.perf_counter() - begun
                self._run(hooks, Step(entry, batches, seconds, self.engine.waited - waited))
                self.check()
        finally:
            journal.sync()
        if 0 < self.step == self.skipped:
            raise Diverged(
                f"the loss was finite in none of the {self.step} steps: no weight was moved. See what "
                "the model reads with zoft data preview, and try model.compute_dtype=float32"
            )

    def _measured(self, batches: Sequence[Batch]) -> Measurement:
        """The projected gradients of the next step. The tail keeps what its gradient needs."""
        tail, losses = self.engine.tail, self.engine.losses_of(batches)
        with tail.recording() if tail else nullcontext():
            return self.engine.estimator.measure(self.step + 1, losses)

    def _move_tail(self, batches: Sequence[Batch]) -> None:
        """Take the tail's part of the step that was just applied, if its losses were finite."""
        if self.engine.tail and not self.nonfinite:
            share = self.lr(self.step) / self.recipe.optimizer.lr
            self.engine.tail.step(self.step, self.engine.objective, batches, share)

    def batches(self, step: int) -> list[Batch]:
        """The examples of a step, a function of (seed, step), in micro-batches of equal width."""
        rows = [self.train_set[row] for row in self.order.rows(step)]
        return self.engine.batches(rows, self.recipe.train.micro_batch_size)

    def lr(self, step: int) -> float:
        """The learning rate of a step, by the schedule."""
        settings = self.recipe.optimizer
        return learning_rate(
            step,
            lr=settings.lr,
            steps=self.recipe.train.steps,
            schedule=settings.schedule,
            warmup_steps=settings.warmup_steps,
        )

    def apply(self, entry: Entry) -> None:
        """Move the weights by one line of the journal. Resuming calls this and nothing else."""
        self.step = entry.measurement.step
        if self.engine.optimizer.apply(entry.measurement, entry.lr):
            self.nonfinite = 0
        else:
            self.skipped += 1
            self.nonfinite += 1

    @property
    def diverged(self) -> bool:
        """Whether too many steps in a row had a loss that was not finite."""
        return self.nonfinite >= self.recipe.train.max_nonfinite

    def state(self) -> dict[str, Any]:
        """The content of trainer.json."""
        counters = {"step": self.step, "skipped": self.skipped, "nonfinite": self.nonfinite}
        return {**counters, "optimizer": self.engine.optimizer.state_dict()}

    def load(self, folder: Path) -> None:
        """Take the state of a checkpoint (its weights are in the model already)."""
        meta = checkpoint.read_meta(folder)
        self.step, self.skipped = meta["step"], meta["skipped"]
        self.nonfinite = meta["nonfinite"]
        self.engine.optimizer.load_state_dict(meta["optimizer"])
        self.engine.weights.load(checkpoint.stored_state(folder))
        if self.engine.tail:
            self.engine.tail.load_state_dict(load_file(folder / TAIL_STATE))

    def _run(self, hooks: Sequence[Hook], step: Step | None) -> None:
        for hook in hooks:
            hook(self, step)
        if self.diverged:
            kept = checkpoint.checkpoint_folder(Path(self.recipe.output_dir), self.step)
            raise Diverged(
                f"the loss was not finite in {self.nonfinite} steps in a row, up to step "
                f"{self.step}; {kept} holds the weights of the last good step. Start a new run with "
                "a lower optimizer.lr"
            )
