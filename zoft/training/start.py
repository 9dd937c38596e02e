"""The two ways into a run: from nothing, or from what an earlier part of it left behind."""

from __future__ import annotations

import platform
import shutil
import sys
import time
from collections.abc import Sequence
from datetime import UTC, datetime
from importlib.metadata import version

import torch

from zoft import __version__
from zoft.errors import EnvironmentProblem, RecipeError
from zoft.models.quantization import library_of
from zoft.runs import checkpoint
from zoft.runs.folder import RunFolder
from zoft.runs.journal import Entry, Header, Journal, nullable
from zoft.training.preflight import choose_passes, look_at_the_signal
from zoft.training.trainer import Trainer


def begin(trainer: Trainer, folder: RunFolder, header: Header, text: str) -> Journal:
    """Look at the signal, then make the folder: nothing is left behind by a run that can't start."""
    choose_passes(trainer)
    header["optimizer"] = trainer.recipe.optimizer.model_dump(mode="json")
    header["noise"] = look_at_the_signal(trainer)
    trainer.stop.patient = True
    with folder.claimed():
        (folder.path / "recipe.yaml").write_text(text, encoding="utf-8")
        folder.write_resolved(trainer.recipe)
        if trainer.recipe.tune.method != "full":
            checkpoint.save(
                folder.start,
                trainer.write_model,
            )
        folder.update_manifest(
            status="running",
            command=sys.argv,
            started=datetime.now(UTC).isoformat(timespec="seconds"),
            versions=versions(),
            **surroundings(trainer),
            attention_mask=trainer.estimator.view.masked,
            base=header["base"],
            data=header["data"],
            noise=header["noise"],
        )
        return Journal.create(folder.journal, header, trainer.recipe.journal.sync_seconds)


def go_on(trainer: Trainer, folder: RunFolder, header: Header) -> Journal:
    """Check that base and data are the run's, then apply the steps behind the checkpoint."""
    trainer.stop.patient = True
    journal, old, entries = Journal.reopen(folder.journal, trainer.recipe.journal.sync_seconds)
    try:
        for what, name in (("base", "model"), ("data", "training data")):
            if old[what]["sha256"] != header[what]["sha256"]:
                raise EnvironmentProblem(
                    f"the {name} is not the one that {folder.path} was started with "
                    f"(sha256 {header[what]['sha256'][:12]}, was {old[what]['sha256'][:12]})"
                )
        if any(
            old[key] != nullable(header[key]) for key in ("layout", "seed", "dtype", "parameters")
        ):
            raise EnvironmentProblem(
                f"{folder.journal} names other parameters or another layout of directions: it was "
                f"written by zoft {old['zoft']}, with other libraries"
            )
        steps = trainer.recipe.train.steps
        if len(entries) > steps:
            raise RecipeError(
                f"train.steps: {steps}, but the run in {folder.path} already took {len(entries)} steps"
            )
        if (
            len(entries) < steps
        ):  # a finished run goes on: what it ended with is not its end any more
            shutil.rmtree(folder.final, ignore_errors=True)
        replay(trainer, entries)
        trainer.metrics.rewind(trainer.step)
        before_now = trainer.metrics.read()
        trainer.narrator.resume(before_now)
        trainer.scores = {e["step"]: e for e in before_now if e["event"] == "eval"}
        folder.write_resolved(trainer.recipe)
        now = surroundings(trainer)
        before = folder.manifest()
        for name, value in now.items():
            if before.get(name, value) != value:
                trainer.narrator.say(
                    f"note: {name} is {value}, was {before[name]}: losses measured from here on may "
                    "differ in their last bits from an uninterrupted run's"
                )
        folder.update_manifest(status="running", **now)
    except BaseException:
        journal.close()
        raise
    return journal


def surroundings(trainer: Trainer) -> dict[str, object]:
    """What the last bits of a forward pass depend on, and a resume may have changed."""
    return {
        "device": trainer.recipe.device,
        "cpu": platform.processor() or platform.machine(),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "quantization": library_of(trainer.recipe.model.quantization),
        "micro_batch_size": trainer.recipe.train.micro_batch_size,
    }


def replay(trainer: Trainer, entries: Sequence[Entry]) -> None:
    """Forward-free: one sweep per journal line behind the checkpoint."""
    if trainer.step > len(entries):
        raise EnvironmentProblem(
            f"the checkpoint is at step {trainer.step}, the journal ends at {len(entries)}"
        )
    begun, first = time.perf_counter(), trainer.step
    for entry in entries[trainer.step :]:
        trainer.apply(entry)
        trainer.stop.check()
    seconds = time.perf_counter() - begun
    trainer.narrator.say(
        f"resuming at step {trainer.step}: checkpoint {first}, then "
        f"{trainer.step - first} steps from the journal in {seconds:.1f} s"
    )


def versions() -> dict[str, str]:
    packages = ("torch", "transformers", "peft", "datasets", "numba", "numpy", "safetensors")
    return {
        "zoft": __version__,
        "python": platform.python_version(),
        **{name: version(name) for name in packages},
    }
