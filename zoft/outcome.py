"""How a run ends: the saved result, the last scores, the entry in run.json."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from zoft import checkpoint
from zoft.errors import Diverged, Interrupted, RecipeError
from zoft.memory import peak_memory_bytes
from zoft.recipe.load import dump_recipe
from zoft.recipe.schema import Recipe
from zoft.run_folder import RunFolder
from zoft.tracking import Metrics, in_words
from zoft.trainer import Trainer


def finish(trainer: Trainer, folder: RunFolder) -> None:
    """Save final/, then score the test set once, then say how it went."""
    recipe = trainer.recipe

    def write(target: Path) -> None:
        trainer.write_model(target)
        (target / "recipe.yaml").write_text(dump_recipe(recipe), encoding="utf-8")

    checkpoint.save(folder.final, write)
    values: dict[str, Any] = {}
    if trainer.test_set is not None:
        values = {"set": "test", **trainer.evaluate(trainer.test_set)}
    elif trainer.eval_set is not None:
        scored = trainer.scores[trainer.step]
        kept: dict[str, Any] = {
            key: value for key, value in scored.items() if key not in ("event", "step")
        }
        values = {"set": "eval", **kept}
    values["peak_memory_bytes"] = peak_memory_bytes(trainer.device)
    event = trainer.metrics.write("final", trainer.step, **values)
    best = trainer.best_steps()
    before = trainer.scores.get(0)
    folder.update_manifest(
        final=event,
        zero_shot=before,
        best_checkpoint=checkpoint.checkpoint_folder(folder.path, best[0]).name if best else None,
        peak_memory_bytes=values["peak_memory_bytes"],
    )
    trainer.narrator.close()
    tell_result(folder, event, before, trainer.scores.get(trainer.step))


def tell_result(
    folder: RunFolder,
    final: dict[str, Any],
    before: dict[str, Any] | None,
    after: dict[str, Any] | None,
) -> None:
    if before and after:
        print(f"before tuning  {in_words(before)}")
        print(f"after          {in_words(after)}")
    if final.get("set") == "test":
        print(f"test           {in_words(final)}")
    print(f"peak memory    {final['peak_memory_bytes'] / 2**30:.2f} GiB")
    print(f"files          {folder.final}")


def already_finished(folder: RunFolder, recipe: Recipe) -> bool:
    """Whether nothing is left to do; then say what came out."""
    manifest = folder.manifest()
    final = manifest.get("final")
    if manifest.get("status") != "finished" or not final or final["step"] < recipe.train.steps:
        return False
    if recipe.data.test != folder.previous().data.test:
        return False  # another test set: score it
    if final["step"] > recipe.train.steps:
        raise RecipeError(
            f"train.steps: the run in {folder.path} already took {final['step']} steps"
        )
    print(f"{folder.path} is finished ({final['step']} steps)")
    evals = {e["step"]: e for e in Metrics(folder.metrics).read() if e["event"] == "eval"}
    tell_result(folder, final, manifest.get("zero_shot"), evals.get(final["step"]))
    return True


@contextmanager
def recorded(folder: RunFolder, trainer: Trainer) -> Iterator[None]:
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
