"""Start a run, or restore it from its journal and a checkpoint."""

from __future__ import annotations

import platform
import shutil
import sys
import time
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from importlib.metadata import version
from importlib.util import find_spec
from typing import Any

import torch
from transformers import PreTrainedTokenizerBase

from zoft import __version__
from zoft.data.examples import Example, length
from zoft.engine.tail.head import FILE as TAIL
from zoft.engine.tail.head import label_words, require_open, solve_head
from zoft.errors import EnvironmentProblem, RecipeError
from zoft.models.quantization import library_of
from zoft.recipe.resolved import Resolved
from zoft.runs import checkpoint
from zoft.runs.checksum import UNPROTECTED, protected
from zoft.runs.folder import RunFolder
from zoft.runs.journal import Entry, Header, Journal, nullable
from zoft.training.hooks import Evaluations, write_model
from zoft.training.trainer import Trainer


def solve_tail(trainer: Trainer, run: RunFolder, evaluations: Evaluations) -> None:
    """Solve the rows of the head that `tune.tail` names on training rows drawn as steps draw them, put
    them into the model, score it before and after, and write start/tail.safetensors: nothing if that
    is there. Raises RecipeError."""
    tune, settings = trainer.recipe.tune, trainer.recipe.eval
    if not solves_head(trainer) or (run.start / TAIL).is_file():
        return
    evaluations(trainer, None)
    begun = time.perf_counter()
    examples = _drawn(trainer, tune.tail_rows)

    def passed(rows: int) -> None:
        evaluations.narrator.evaluating("tail", rows, len(examples))
        trainer.check()

    view, batches = trainer.engine.view, trainer.engine.batches
    tokens = settings.batch_size * max(map(length, examples))  # as many as an evaluation's pass
    for solved in solve_head(view, batches, examples, tokens, passed):
        (loss, hits), (new_loss, new_hits) = solved.before, solved.after
        evaluations.narrator.say(
            f"tail: the head's rows of {len(solved.rows.words)} words, solved on {solved.examples:,} "
            f"rows in {time.perf_counter() - begun:.0f} s; on rows left out, loss {loss:.3f} -> "
            f"{new_loss:.3f}, accuracy {hits:.3f} -> {new_hits:.3f}"
        )
    summary = {**solved.summary(), "seconds": round(time.perf_counter() - begun, 1)}
    solved.rows.put(trainer.engine.model)
    run.update_manifest(tail=summary)
    evaluations.score_tail()
    checkpoint.save(run.start, solved.rows.write)


def solves_head(trainer: Trainer) -> bool:
    """Whether the head's rows are solved before the first step. Raises RecipeError if `tune.tail` says
    so and they cannot be; the last blocks move without, too."""
    tail = trainer.recipe.tune.tail
    if tail == "none":
        return False
    try:
        label_words(trainer.train_set)
        require_open(trainer.engine.view)
    except RecipeError:
        if tail == "head":
            raise
        return False
    return True


def _drawn(trainer: Trainer, most: int) -> list[Example]:
    """The rows of as many steps as give `most` of them, each once."""
    wanted, number = min(most, len(trainer.train_set)), 0
    rows: dict[int, None] = {}  # in the order in which they come
    while len(rows) < wanted:
        number += 1
        rows.update(dict.fromkeys(int(row) for row in trainer.order.rows(number)))
    return [trainer.train_set[row] for row in list(rows)[:wanted]]


def start_run(
    trainer: Trainer,
    run: RunFolder,
    header: Header,
    text: str,
    tokenizer: PreTrainedTokenizerBase,
) -> Journal:
    """Make the folder of a run at its first step: recipes (`text` is the one that was given), run.json,
    the adapter that it starts from, and the journal."""
    recipe = trainer.recipe
    with run.claimed():
        (run.path / "recipe.yaml").write_text(text, encoding="utf-8")
        run.write_resolved(recipe)
        if recipe.tune.method != "full":
            checkpoint.save(
                run.start, lambda folder: write_model(trainer.engine, tokenizer, folder)
            )
        run.update_manifest(
            status="running",
            command=sys.argv,
            started=datetime.now(UTC).isoformat(timespec="seconds"),
            versions=versions(),
            **surroundings(recipe),
            attention_mask=trainer.engine.view.masked,
            probed=trainer.engine.view.probed,
            base=header["base"],
            data=header["data"],
            noise=header["noise"],
        )
        return Journal.create(run.journal, header, recipe.journal.sync_seconds)


def resume_run(
    trainer: Trainer, run: RunFolder, header: Header, say: Callable[[str], None]
) -> Journal:
    """Check that base and data are the run's, then apply the steps after the checkpoint."""
    recipe = trainer.recipe
    known = trainer.step if trainer.engine.tail else None  # what moved the tail is in no journal
    journal, old, entries = Journal.reopen(run.journal, recipe.journal.sync_seconds, known)
    try:
        _require_same_run(old, header, run)
        steps = recipe.train.steps
        if len(entries) > steps:
            raise RecipeError(
                f"train.steps: {steps}, but the run in {run.path} already took {len(entries)} steps"
            )
        if len(entries) < steps:  # a finished run goes on: what it ended with is not its end
            shutil.rmtree(run.final, ignore_errors=True)
        if not protected(old):
            say(f"checksums: {UNPROTECTED}")
        replay(trainer, entries, say)
        run.write_resolved(recipe)
        now, before = surroundings(recipe), run.manifest()
        if (reached := before.get("step", 0)) > trainer.step:
            say(
                f"note: by run.json this run was at step {reached}, its journal ends at "
                f"{trainer.step}: the steps between are taken again"
            )
        for name, value in now.items():
            if before.get(name, value) != value:
                say(
                    f"note: {name} is {value}, was {before[name]}: losses measured from here on may "
                    "differ in their last bits from an uninterrupted run's"
                )
        run.update_manifest(status="running", step=trainer.step, **now)
    except BaseException:
        journal.close()
        raise
    return journal


def replay(trainer: Trainer, entries: Sequence[Entry], say: Callable[[str], None]) -> None:
    """Apply the journal lines after the checkpoint, without forward passes."""
    if trainer.step > len(entries):
        raise EnvironmentProblem(
            f"the checkpoint is at step {trainer.step}, the journal ends at {len(entries)}"
        )
    begun, first = time.perf_counter(), trainer.step
    for entry in entries[trainer.step :]:
        trainer.apply(entry)
        trainer.check()
    seconds = time.perf_counter() - begun
    say(
        f"resuming at step {trainer.step}: checkpoint {first}, then "
        f"{trainer.step - first} steps from the journal in {seconds:.1f} s"
    )


def surroundings(recipe: Resolved) -> dict[str, object]:
    """What the last bits of a forward pass depend on, and a resume may have changed."""
    return {
        "device": recipe.device,
        "cpu": platform.processor() or platform.machine(),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "quantization": library_of(recipe.model.quantization),
        "micro_batch_size": recipe.train.micro_batch_size,
    }


def versions() -> dict[str, str]:
    """Of zoft and of what it stands on; not all of it is needed everywhere (numba: on a CPU)."""
    packages = ("torch", "transformers", "peft", "datasets", "numba", "numpy", "safetensors")
    return {
        "zoft": __version__,
        "python": platform.python_version(),
        **{name: version(name) for name in packages if find_spec(name)},
    }


def _require_same_run(old: Header, header: dict[str, Any] | Header, run: RunFolder) -> None:
    """Raises EnvironmentProblem if base, data or directions are not those of the run."""
    for what, name in (("base", "model"), ("data", "training data")):
        if old[what]["sha256"] != header[what]["sha256"]:
            raise EnvironmentProblem(
                f"the {name} is not the one that {run.path} was started with "
                f"(sha256 {header[what]['sha256'][:12]}, was {old[what]['sha256'][:12]})"
            )
    if any(old[key] != nullable(header[key]) for key in ("layout", "seed", "dtype", "parameters")):
        raise EnvironmentProblem(
            f"{run.journal} names other parameters or another layout of directions: it was "
            f"written by zoft {old['zoft']}, with other libraries"
        )
