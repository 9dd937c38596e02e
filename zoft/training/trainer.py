"""The loop: measure, write it down, move the weights. The order is what makes a kill harmless."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from zoft.data.examples import Example
from zoft.data.order import Order
from zoft.engine.estimator import Estimator, Losses
from zoft.engine.objectives.batch import Batch
from zoft.engine.objectives.objective import Objective
from zoft.engine.offload.streamer import Streamer
from zoft.engine.optimizers.lr_schedule import learning_rate
from zoft.engine.optimizers.optimizer import Optimizer
from zoft.engine.optimizers.update import Weights
from zoft.errors import Diverged
from zoft.inference.scoring import evaluate_set
from zoft.recipe.schema import Recipe
from zoft.runs import checkpoint
from zoft.runs.console.narrator import Narrator
from zoft.runs.journal import Entry, Journal
from zoft.runs.metrics import Event, Metrics
from zoft.runs.record import best_first
from zoft.system.signals import Stop


@dataclass
class Trainer:
    """Everything a run is made of. `recipe` has no `auto` left.

    `step` counts the steps behind the weights, `skipped` those of them that were not finite,
    `nonfinite` the latest such steps in a row, `scores` the eval events by step; `planned_bytes` is the
    device memory that was expected. `after_checkpoint` gets the folder of each new checkpoint.
    """

    recipe: Recipe
    folder: Path
    device: torch.device
    model: PreTrainedModel | PeftModel
    tokenizer: PreTrainedTokenizerBase
    estimator: Estimator
    objective: Objective
    optimizer: Optimizer
    weights: Weights
    train_set: Sequence[Example]
    order: Order
    eval_set: Sequence[Example] | None
    test_set: Sequence[Example] | None
    metrics: Metrics
    narrator: Narrator
    stop: Stop
    step: int = 0
    skipped: int = 0
    nonfinite: int = 0
    scores: dict[int, Event] = field(default_factory=dict)
    streamer: Streamer | None = None
    planned_bytes: int = 0
    after_checkpoint: Callable[[Recipe, Path], None] | None = None

    def fit(self, journal: Journal) -> None:
        """Take the steps that are left. Raises Diverged, Interrupted."""
        try:
            self._after_step(journal)  # what a killed run still owed at this step
            while self.step < self.recipe.train.steps:
                begun, waited = time.perf_counter(), self._waited()
                batches = self.batches(self.step + 1)
                entry = self._measure(self.step + 1, batches)
                journal.append(entry)
                self.apply(entry)
                extra = {"waited": round(self._waited() - waited, 4)} if self.streamer else {}
                self._tell(entry, batches, time.perf_counter() - begun, extra)
                self._after_step(journal)
                self.stop.check()
        finally:
            journal.sync()

    def batches(self, step: int) -> list[Batch]:
        """The examples of a step, a function of (seed, step), in micro-batches of equal width."""
        size = self.recipe.train.micro_batch_size
        assert isinstance(size, int)
        rows = self.order.rows(step)
        return self.objective.batches([self.train_set[row] for row in rows], size, self.device)

    def losses(self, batches: Sequence[Batch]) -> Losses:
        """What each example lost at the weights that the open probe shows."""
        return self.objective.losses(self.estimator.view, batches)

    def _measure(self, step: int, batches: Sequence[Batch]) -> Entry:
        settings = self.recipe.optimizer
        assert isinstance(settings.lr, float)
        lr = learning_rate(
            step,
            lr=settings.lr,
            steps=self.recipe.train.steps,
            schedule=settings.schedule,
            warmup_steps=settings.warmup_steps,
        )
        return Entry(self.estimator.measure(step, lambda: self.losses(batches)), lr)

    def apply(self, entry: Entry) -> None:
        """Move the weights by one line of the journal. Resuming calls this and nothing else."""
        self.step = entry.measurement.step
        if entry.measurement.finite:
            self.optimizer.update(entry.measurement, entry.lr)
            self.nonfinite = 0
        else:
            self.skipped += 1
            self.nonfinite += 1

    def state(self) -> dict[str, Any]:
        """What trainer.json holds."""
        counters = {"step": self.step, "skipped": self.skipped, "nonfinite": self.nonfinite}
        return {**counters, "optimizer": self.optimizer.state_dict()}

    def load(self, folder: Path) -> None:
        """Take the state of a checkpoint (its weights are in the model already)."""
        meta = checkpoint.read_meta(folder)
        self.step, self.skipped = meta["step"], meta["skipped"]
        self.nonfinite = meta["nonfinite"]
        self.optimizer.load_state_dict(meta["optimizer"])
        self.weights.load(checkpoint.stored_state(folder))

    # -- after a step ---------------------------------------------------------------------------

    def _after_step(self, journal: Journal) -> None:
        if self.nonfinite >= self.recipe.train.max_nonfinite:
            self._checkpoint(journal)
            kept = checkpoint.checkpoint_folder(self.folder, self.step)
            raise Diverged(
                f"the loss was not finite in {self.nonfinite} steps in a row, up to step "
                f"{self.step}; {kept} holds the weights of the last good step. Start a new run with "
                "a lower optimizer.lr"
            )
        if self.eval_set is not None and self._due(self.recipe.eval.every, ends=True):
            self._evaluate()
        if self._due(self.recipe.checkpoint.every, ends=False):
            self._checkpoint(journal)

    def _due(self, every: int, *, ends: bool) -> bool:
        if self.step in (0, self.recipe.train.steps) and ends:
            return True
        return self.step > 0 and every > 0 and self.step % every == 0

    def close(self) -> None:
        """Stop what runs beside the loop. What streamed weights were is in the journal."""
        if self.streamer:
            self.streamer.close()

    def _waited(self) -> float:
        """Seconds so far that the computation stood still for a block."""
        return self.streamer.executor.waited if self.streamer else 0.0

    def _tell(
        self, entry: Entry, batches: Sequence[Batch], seconds: float, extra: dict[str, float]
    ) -> None:
        m, tokens = entry.measurement, sum(batch.tokens for batch in batches)
        event = self.metrics.write(
            "train",
            m.step,
            loss=m.loss,
            loss_plus=m.loss_plus,
            loss_minus=m.loss_minus,
            projected_grad=m.projected_grad,
            lr=entry.lr,
            skipped=self.skipped,
            seconds=round(seconds, 4),
            tokens=tokens,
            padding=round(1.0 - tokens / sum(batch.input_ids.numel() for batch in batches), 4),
            **extra,
        )
        self.narrator.step(event)

    def _evaluate(self) -> None:
        if self.step in self.scores or self.eval_set is None:
            return
        event = self.metrics.write("eval", self.step, **self.evaluate(self.eval_set))
        self.scores[self.step] = event
        self.narrator.score(event)

    def evaluate(self, examples: Sequence[Example]) -> dict[str, Any]:
        """Its scores, eval.metric first, then rows and seconds."""
        return evaluate_set(
            self.estimator.view,
            self.objective,
            examples,
            self.tokenizer,
            self.recipe.eval,
            device=self.device,
            between=self.stop.check,
        )

    def _checkpoint(self, journal: Journal) -> None:
        target = checkpoint.checkpoint_folder(self.folder, self.step)
        if target in checkpoint.find(self.folder):
            return
        lora = isinstance(self.model, PeftModel)
        written = [t.parameter for t in self.weights] if lora else self.model.parameters()
        moments = 4 * len(self.weights.names) * sum(t.parameter.numel() for t in self.weights)
        size = sum(parameter.nbytes for parameter in written) + moments
        checkpoint.require_space(self.folder, size)
        journal.sync()  # a checkpoint must not be ahead of the journal

        def write(folder: Path) -> None:
            self.write_model(folder)
            checkpoint.write_state(folder, self.weights, self.state())

        begun = time.perf_counter()
        checkpoint.save(target, write)
        self.metrics.write(
            "checkpoint",
            self.step,
            path=target.name,
            seconds=round(time.perf_counter() - begun, 3),
        )
        settings = self.recipe.checkpoint
        best = self.best_steps()[: settings.keep_best]
        kept = [checkpoint.checkpoint_folder(self.folder, step) for step in best]
        checkpoint.prune(self.folder, settings.keep_last, kept)
        if self.after_checkpoint:
            self.after_checkpoint(self.recipe, target)

    def write_model(self, folder: Path) -> None:
        """The model as it is now, as Hugging Face files."""
        streamed = self.weights if self.streamer else None
        checkpoint.write_model(folder, self.model, self.tokenizer, streamed)

    def best_steps(self) -> list[int]:
        """The scored checkpoints' steps, best first."""
        saved = {path.name for path in checkpoint.find(self.folder)}
        ranked = best_first(self.scores.values(), self.recipe.eval.metric)
        steps = [event["step"] for event in ranked]
        return [s for s in steps if checkpoint.checkpoint_folder(self.folder, s).name in saved]
