"""The hooks of a training run: metrics and live lines, evaluations, checkpoints."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from peft import PeftModel
from safetensors.torch import save_file
from transformers import PreTrainedTokenizerBase

from zoft.data.examples import Example
from zoft.engine.build import Engine
from zoft.engine.tail.moving import STATE as TAIL_STATE
from zoft.inference.scoring import evaluate_set
from zoft.recipe.resolved import Resolved
from zoft.runs import checkpoint
from zoft.runs.console.narrator import Narrator
from zoft.runs.journal import Journal
from zoft.runs.metrics import Event, Metrics
from zoft.runs.record import best_first
from zoft.training.trainer import Step, Trainer


@dataclass(frozen=True)
class Narration:
    """Writes every step to metrics.jsonl and to the live lines."""

    metrics: Metrics
    narrator: Narrator

    def __call__(self, trainer: Trainer, step: Step | None) -> None:
        if step is None:
            return
        m, tokens = step.entry.measurement, sum(batch.tokens for batch in step.batches)
        extra = {"waited": round(step.waited, 4)} if trainer.engine.streamer else {}
        event = self.metrics.write(
            "train",
            m.step,
            loss=m.loss,
            loss_plus=m.loss_plus,
            loss_minus=m.loss_minus,
            projected_grad=m.projected_grad,
            lr=step.entry.lr,
            skipped=trainer.skipped,
            seconds=round(step.seconds, 4),
            tokens=tokens,
            padding=round(1.0 - tokens / sum(batch.input_ids.numel() for batch in step.batches), 4),
            **extra,
        )
        self.narrator.step(event)


@dataclass
class Evaluations:
    """Scores the eval set every `eval.every` steps, before the first and after the last.

    `scores` holds the eval events by step.
    """

    recipe: Resolved
    engine: Engine
    tokenizer: PreTrainedTokenizerBase
    eval_set: Sequence[Example] | None
    metrics: Metrics
    narrator: Narrator
    check: Callable[[], None]
    scores: dict[int, Event] = field(default_factory=dict)

    def __call__(self, trainer: Trainer, step: Step | None) -> None:
        del step
        now, end = trainer.step, self.recipe.train.steps
        due = now in (0, end) or _every(self.recipe.eval.every, now)
        if self.eval_set is None or trainer.diverged or not due or now in self.scores:
            return
        self.scores[now] = self.metrics.write("eval", now, **self.evaluate(self.eval_set))
        self.narrator.score(self.scores[now])

    def score_tail(self) -> None:
        """Score the eval set once the tail is solved and no step was taken."""
        if self.eval_set is not None:
            self.narrator.score(self.metrics.write("tail", 0, **self.evaluate(self.eval_set)))

    def evaluate(self, examples: Sequence[Example]) -> dict[str, Any]:
        """The scores of `examples`, eval.metric first, then rows and seconds."""
        return evaluate_set(
            self.engine.view,
            self.engine.objective,
            examples,
            self.tokenizer,
            self.recipe.eval,
            device=self.engine.device,
            between=self.check,
            told=self.narrator.evaluating,
        )


@dataclass(frozen=True)
class Checkpoints:
    """Saves every `checkpoint.every` steps, and a run that diverged; keeps the newest and the best.

    `saved` are called with each new checkpoint's folder.
    """

    recipe: Resolved
    folder: Path
    engine: Engine
    tokenizer: PreTrainedTokenizerBase
    journal: Journal
    metrics: Metrics
    evaluations: Evaluations
    saved: Sequence[Callable[[Path], None]] = ()

    def __call__(self, trainer: Trainer, step: Step | None) -> None:
        del step
        target = checkpoint.checkpoint_folder(self.folder, trainer.step)
        due = trainer.diverged or _every(self.recipe.checkpoint.every, trainer.step)
        if not due or target in checkpoint.find(self.folder):
            return
        checkpoint.require_space(self.folder, self._size())
        self.journal.sync()  # a checkpoint must not be ahead of the journal

        def write(folder: Path) -> None:
            self.write_model(folder)
            checkpoint.write_state(folder, self.engine.weights, trainer.state())
            if self.engine.tail:
                save_file(self.engine.tail.state_dict(), folder / TAIL_STATE)

        begun = time.perf_counter()
        checkpoint.save(target, write)
        seconds = round(time.perf_counter() - begun, 3)
        self.metrics.write("checkpoint", trainer.step, path=target.name, seconds=seconds)
        settings = self.recipe.checkpoint
        best = [
            checkpoint.checkpoint_folder(self.folder, step)
            for step in self.best_steps()[: settings.keep_best]
        ]
        checkpoint.prune(self.folder, settings.keep_last, best)
        for tell in self.saved:
            tell(target)

    def write_model(self, folder: Path) -> None:
        """Write the model as it is now, as Hugging Face files."""
        write_model(self.engine, self.tokenizer, folder)

    def best_steps(self) -> list[int]:
        """The scored checkpoints' steps, best first."""
        present = {path.name for path in checkpoint.find(self.folder)}
        ranked = best_first(self.evaluations.scores.values(), self.recipe.eval.metric)
        steps = [event["step"] for event in ranked]
        return [s for s in steps if checkpoint.checkpoint_folder(self.folder, s).name in present]

    def _size(self) -> int:
        """Bytes of a checkpoint: the weights that it holds, and the update rule's state."""
        weights, model = self.engine.weights, self.engine.model
        tuned = [t.parameter for t in weights]
        written = tuned if isinstance(model, PeftModel) else model.parameters()
        state = 4 * len(weights.names) * sum(parameter.numel() for parameter in tuned)
        return sum(parameter.nbytes for parameter in written) + state


def write_model(engine: Engine, tokenizer: PreTrainedTokenizerBase, folder: Path) -> None:
    """Write the model as it is now, as Hugging Face files."""
    streamed = engine.weights if engine.streamer else None
    checkpoint.write_model(folder, engine.model, tokenizer, streamed)


def _every(every: int, step: int) -> bool:
    return step > 0 and every > 0 and step % every == 0
