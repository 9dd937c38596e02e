"""How a run ends: the saved result, the last scores, the entry in run.json."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from shlex import quote
from typing import Any

from zoft.data.examples import Example
from zoft.engine.tail.moving import END
from zoft.errors import Diverged, Interrupted, RecipeError, first_line
from zoft.models.adapters import is_adapter
from zoft.planning.memory.footprint import CUDA_CONTEXT
from zoft.recipe.load import dump_recipe
from zoft.recipe.resolved import Resolved
from zoft.recipe.schema import Recipe
from zoft.runs import checkpoint
from zoft.runs import complete as manifest
from zoft.runs.console.progress import clock
from zoft.runs.folder import RunFolder
from zoft.runs.journal import read
from zoft.runs.metrics import Metrics, in_words
from zoft.runs.record import read_run
from zoft.runs.report.charts import write_loss_picture
from zoft.sharing.base_model import base_here
from zoft.sharing.model_card import card
from zoft.system.device import peak_memory_bytes
from zoft.system.host_memory import gib
from zoft.training.hooks import Checkpoints
from zoft.training.trainer import Trainer


def finish(
    trainer: Trainer,
    run: RunFolder,
    checkpoints: Checkpoints,
    test_set: Sequence[Example] | None,
    planned_bytes: int,
) -> None:
    """Save final/, then score the test set once, then write it down."""
    recipe, evaluations, metrics = trainer.recipe, checkpoints.evaluations, checkpoints.metrics

    def write(target: Path) -> None:
        checkpoints.write_model(target)
        (target / "recipe.yaml").write_text(dump_recipe(recipe), encoding="utf-8")
        if run.metrics.is_file():
            shutil.copyfile(run.metrics, target / "metrics.jsonl")
        _picture(run, target / "loss.png", evaluations.narrator.say)

    checkpoint.save(run.final, write)
    if tail := trainer.engine.tail:
        checkpoint.save(run.path / END, lambda folder: tail.write(folder, trainer.step))
    values: dict[str, Any] = {}
    if test_set is not None:
        values = {"set": "test", **evaluations.evaluate(test_set)}
    elif evaluations.eval_set is not None:
        scored = evaluations.scores[trainer.step]
        kept = {key: value for key, value in scored.items() if key not in ("event", "step")}
        values = {"set": "eval", **kept}
    device = trainer.engine.device
    values["peak_memory_bytes"] = peak_memory_bytes(device)
    event = metrics.write("final", trainer.step, **values)
    best = checkpoints.best_steps()
    run.update_manifest(
        final=event,
        zero_shot=evaluations.scores.get(0),
        best_checkpoint=checkpoint.checkpoint_folder(run.path, best[0]).name if best else None,
        peak_memory_bytes=values["peak_memory_bytes"],
        # What torch counts of a card is what it was asked for, without the driver's own.
        planned_memory_bytes=planned_bytes - (CUDA_CONTEXT if device.type != "cpu" else 0),
    )
    _add_card(recipe, run, metrics)


def _add_card(recipe: Resolved, run: RunFolder, metrics: Metrics) -> None:
    """README.md with the weights. What it says about the base needs no network."""
    record = run.manifest()
    text = card(
        recipe,
        dump_recipe(recipe),
        record,
        metrics.read(),
        base_here(recipe, record.get("base", {})),
        adapter=is_adapter(run.final),
    )
    manifest.replace_text(run.final, "README.md", text)


def _picture(run: RunFolder, path: Path, say: Callable[[str], None]) -> None:
    try:
        write_loss_picture(read_run(run.path), path)
    except Exception as error:  # a picture is not worth a run
        say(f"warning: no loss.png: {type(error).__name__}: {first_line(error)}")


def print_summary(folder: RunFolder) -> None:
    """Say what came out, what it took, where it is and what can be done with it."""
    run = read_run(folder.path)
    if run.zero_shot:
        print(f"before tuning  {in_words(run.zero_shot)}")
    if run.tail:
        print(f"tail alone     {in_words(run.tail)}")
    if run.best and run.best is not run.last:
        print(f"best           {in_words(run.best)}, step {run.best['step']}")
    if run.last:
        print(f"after          {in_words(run.last)}")
    for final in run.of("final"):
        if final.get("set") == "test":
            print(f"test           {in_words(final)}")
    print(f"wall time      {clock(run.seconds)}")
    if peak := run.peak_memory_bytes:
        planned = run.manifest.get("planned_memory_bytes")
        print(f"peak memory    {gib(peak)}{f' (planned {gib(planned)})' if planned else ''}")
    print(f"files          {folder.final}")
    if (folder.path / "report.html").is_file():
        print(f"report         {folder.path / 'report.html'}")
    where = quote(str(folder.path))
    print(f"next           zoft eval {where} {quote(str(folder.resolved))}")
    print(f"               zoft generate {where}")
    print(f"               zoft push {where}")


def already_finished(folder: RunFolder, recipe: Resolved, previous: Recipe) -> bool:
    """Whether nothing is left to do; then say what came out. Raises EnvironmentProblem for a journal
    that is damaged."""
    _, entries = read(folder.journal)
    run = folder.manifest()
    final = run.get("final")
    if run.get("status") != "finished" or not final or final["step"] < recipe.train.steps:
        return False
    if (recipe.data.eval, recipe.data.test) != (previous.data.eval, previous.data.test):
        return False  # another set: score it
    if final["step"] > recipe.train.steps:
        raise RecipeError(
            f"train.steps: the run in {folder.path} already took {final['step']} steps"
        )
    if len(entries) < final["step"]:
        return False  # lines are missing at the journal's end: take these steps again
    print(f"{folder.path} is finished ({final['step']} steps)")
    print_summary(folder)
    return True


@contextmanager
def record_status(folder: RunFolder, trainer: Trainer) -> Iterator[None]:
    """Write to run.json how the run ended."""
    begun = time.perf_counter()
    status = "failed"
    try:
        yield
        status = "finished"
    except Interrupted:
        status = "interrupted"
        raise
    except Diverged:
        status = "diverged"
        raise
    except Exception as error:
        error.log_path = folder.path / "error.log"  # type: ignore[attr-defined]
        raise
    finally:
        folder.update_manifest(
            status=status,
            step=trainer.step,
            skipped=trainer.skipped,
            seconds=round(folder.manifest().get("seconds", 0.0) + time.perf_counter() - begun, 1),
        )
