"""The two ways into a run: from nothing, or from what an earlier part of it left behind."""

from __future__ import annotations

import platform
import sys
import time
from collections.abc import Sequence
from datetime import UTC, datetime
from importlib.metadata import version

import torch

from zoft import __version__, checkpoint
from zoft.errors import EnvironmentProblem
from zoft.first_look import look_at_the_signal
from zoft.journal import Entry, Header, Journal
from zoft.run_folder import RunFolder
from zoft.trainer import Trainer


def begin(trainer: Trainer, folder: RunFolder, header: Header, text: str) -> Journal:
    """Look at the signal, then make the folder: nothing is left behind by a run that can't start."""
    header["noise"] = look_at_the_signal(trainer)
    folder.create(text, trainer.recipe)
    folder.discard_measurements()
    if trainer.recipe.tune.method == "lora":
        checkpoint.save(
            folder.start, lambda at: checkpoint.write_model(at, trainer.model, trainer.tokenizer)
        )
    folder.update_manifest(
        status="running",
        command=sys.argv,
        started=datetime.now(UTC).isoformat(timespec="seconds"),
        versions=versions(),
        device=trainer.recipe.device,
        cpu=platform.processor() or platform.machine(),
        threads=torch.get_num_threads(),
        attention_mask=trainer.masked,
        base=header["base"],
        data=header["data"],
        noise=header["noise"],
    )
    return Journal.create(folder.journal, header, trainer.recipe.journal.sync_seconds)


def go_on(trainer: Trainer, folder: RunFolder, header: Header) -> Journal:
    """Check that base and data are the run's, then apply the steps behind the checkpoint."""
    journal, old, entries = Journal.reopen(folder.journal, trainer.recipe.journal.sync_seconds)
    try:
        for what, name in (("base", "model"), ("data", "training data")):
            if old[what]["sha256"] != header[what]["sha256"]:
                raise EnvironmentProblem(
                    f"the {name} is not the one that {folder.path} was started with "
                    f"(sha256 {header[what]['sha256'][:12]}, was {old[what]['sha256'][:12]})"
                )
        replay(trainer, entries)
        trainer.metrics.rewind(trainer.step)
        trainer.scores = {e["step"]: e for e in trainer.metrics.read() if e["event"] == "eval"}
        folder.write_resolved(trainer.recipe)
        threads = folder.manifest().get("threads")
        if threads not in (None, torch.get_num_threads()):
            trainer.narrator.say(
                f"note: {torch.get_num_threads()} threads, earlier {threads}: "
                "measured losses may differ in their last bits from an uninterrupted run's"
            )
        folder.update_manifest(status="running", threads=torch.get_num_threads())
    except BaseException:
        journal.close()
        raise
    return journal


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
