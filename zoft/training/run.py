"""`zoft train`: a run from its recipe to its result."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from functools import partial
from pathlib import Path

import torch

from zoft.data.sets import Data, load_data
from zoft.engine.build import Engine, order_for
from zoft.errors import RecipeError
from zoft.planning.out_of_memory import memory_explained
from zoft.planning.resolve import resolve, with_data
from zoft.recipe.load import load_recipe, recipe_text
from zoft.recipe.resolved import Resolved
from zoft.recipe.schema import Recipe
from zoft.runs.console.narrator import Narrator, narrator_for
from zoft.runs.folder import RunFolder, require_empty, require_same, run_of
from zoft.runs.journal import Header, Journal
from zoft.runs.metrics import Metrics
from zoft.runs.report.page import reported
from zoft.runs.trackers.launcher import require_installed, tracked
from zoft.sharing.hub.push import pushing
from zoft.system.device import peak_memory_bytes
from zoft.system.signals import Stop, stop_on_signals
from zoft.training.finish import already_finished, finish, print_summary, record_status
from zoft.training.hooks import Checkpoints, Evaluations, Narration
from zoft.training.load import (
    base_files,
    build_engine,
    choose_placement,
    digest_of,
    header_of,
    load_model,
)
from zoft.training.preflight import preflight
from zoft.training.start import resume_run, solve_tail, solves_head, start_run
from zoft.training.trainer import Hook, Trainer
from zoft.training.warm_start import require_same_adapter, tokenizer_for, warm_start


def train(
    source: str,
    overrides: Sequence[str] = (),
    *,
    resume: str = "none",
    output_dir: str | None = None,
    recipe: Recipe | None = None,
) -> None:
    """Tune a model by a recipe and leave the result in its run folder.

    `source` is a path or a packaged recipe's name, `recipe` what was read from it with the overrides,
    if it was read already; `resume` is none, auto, a run or a checkpoint. Raises ZoftError.
    """
    recipe = recipe or load_recipe(source, overrides)
    run, at = _folder(recipe, resume, output_dir)
    previous = run.previous() if resume != "none" and run.exists else None
    recipe = recipe.model_copy(update={"output_dir": str(run.path)})
    resolved = resolve(warm_start(recipe, run.start if previous else None), previous)
    if previous is not None:
        require_same(resolved, previous)
        require_same_adapter(resolved, previous, run.start)
        if already_finished(run, resolved, previous):
            return
    require_installed(resolved.logging.trackers)
    device = torch.device(resolved.device)

    def variant(*more: str) -> Resolved:
        return resolve(warm_start(load_recipe(source, [*overrides, *more])))

    with (
        stop_on_signals("; nothing is lost: go on with --resume auto") as stop,
        memory_explained(resolved, variant) as explained,
        closing(narrator_for(resolved, lambda: peak_memory_bytes(device))) as narrator,
        pushing(resolved, narrator.say, stop) as pusher,
    ):
        say = narrator.say
        saved = run.newest_checkpoint(at) if previous else None
        files = base_files(resolved, say)
        tokenizer = tokenizer_for(resolved, files, run.start if previous else None)
        data = load_data(resolved, tokenizer, say=say, check=stop.check)
        explained.sets = {**data.examples}
        resolved, place = choose_placement(with_data(resolved, data), data, say)
        explained.recipe = resolved
        model = load_model(resolved, run, files, place, saved, resumed=previous is not None)
        engine = build_engine(resolved, run, model, data, place, saved, say)
        header = header_of(resolved, engine, data, model)
        if previous is None:
            trainer, journal = _begin(
                resolved, engine, data, run, header, source, narrator, stop, place.spare
            )
        else:
            trainer, journal = _go_on(resolved, engine, data, run, header, saved, narrator, stop)
        pushed, planned = partial(pusher.at_checkpoint, trainer.recipe), place.footprint.device
        with _hooks(trainer, journal, data, run, narrator, stop, pushed, planned) as hooks:
            trainer.fit(journal, hooks)
        print_summary(run)
        pusher.at_end(trainer.recipe, run)


def _folder(recipe: Recipe, resume: str, output_dir: str | None) -> tuple[RunFolder, Path | None]:
    """The run's folder, and the checkpoint that `--resume PATH` names."""
    if resume in ("none", "auto"):
        assert recipe.output_dir is not None
        folder, at = RunFolder(Path(output_dir or recipe.output_dir).expanduser()), None
    else:
        folder, at = run_of(Path(resume).expanduser())
        if (
            output_dir is not None
            and Path(output_dir).expanduser().resolve() != folder.path.resolve()
        ):
            raise RecipeError(f"--resume {resume} goes on in {folder.path}: leave out --output-dir")
    if re.search(
        "[\ud800-\udfff]", str(folder.path)
    ):  # the system's bytes, which no recipe can hold
        raise RecipeError(f"output_dir: {str(folder.path)!a} is not UTF-8; choose another name")
    if resume == "none" or not folder.exists:
        require_empty(folder)
    return folder, at


def _begin(
    recipe: Resolved,
    engine: Engine,
    data: Data,
    run: RunFolder,
    header: Header,
    source: str,
    narrator: Narrator,
    stop: Stop,
    spare: int | None,
) -> tuple[Trainer, Journal]:
    """Look at the first step, then make the folder: a run that can't start leaves nothing behind."""
    examples = data.examples["train"]
    trainer = Trainer(recipe, engine, examples, order_for(recipe, examples), stop.check)
    solved = solves_head(trainer)
    found = preflight(trainer, spare, narrator.say)
    optimizer = recipe.optimizer.model_copy(update={"paired": found.paired})
    trainer = Trainer(
        recipe.model_copy(update={"optimizer": optimizer}),
        engine.with_pairing(found.paired),
        examples,
        trainer.order,
        stop.check,
    )
    header["optimizer"] = optimizer.model_dump(mode="json")
    header["noise"] = found.noise
    header["solved_head"] = solved
    stop.patient = True
    journal = start_run(trainer, run, header, recipe_text(source), data.tokenizer)
    run.update_manifest(scored=_scored(data))
    return trainer, journal


def _go_on(
    recipe: Resolved,
    engine: Engine,
    data: Data,
    run: RunFolder,
    header: Header,
    saved: Path | None,
    narrator: Narrator,
    stop: Stop,
) -> tuple[Trainer, Journal]:
    """Take up the run from its checkpoint and its journal."""
    examples = data.examples["train"]
    trainer = Trainer(recipe, engine, examples, order_for(recipe, examples), stop.check)
    if saved:
        trainer.load(saved)
    stop.patient = True
    journal = resume_run(trainer, run, header, narrator.say)
    metrics = Metrics(run.metrics)
    before = run.manifest().get("scored")
    scored = _scored(data) or before
    metrics.rewind(trainer.step, other_set=before is not None and before != scored)
    run.update_manifest(scored=scored)
    narrator.resume(metrics.read())
    return trainer, journal


def _scored(data: Data) -> str | None:
    """sha256 of the eval set, which a resumed run may have changed."""
    return digest_of(data.examples["eval"]) if "eval" in data.examples else None


@contextmanager
def _hooks(
    trainer: Trainer,
    journal: Journal,
    data: Data,
    run: RunFolder,
    narrator: Narrator,
    stop: Stop,
    pushed: Callable[[Path], None],
    planned_bytes: int,
) -> Iterator[list[Hook]]:
    """The hooks of the run. When the last step was taken, its result is saved and scored."""
    recipe, engine, metrics = trainer.recipe, trainer.engine, Metrics(run.metrics)
    scores = {e["step"]: e for e in metrics.read() if e["event"] == "eval"}
    sets, tokenizer = data.examples, data.tokenizer
    evaluations = Evaluations(
        recipe, engine, tokenizer, sets.get("eval"), metrics, narrator, stop.check, scores
    )
    checkpoints = Checkpoints(
        recipe, run.path, engine, tokenizer, journal, metrics, evaluations, [pushed]
    )
    with (
        closing(engine),
        tracked(run, recipe.logging.trackers, narrator.say, stop) as look,
        reported(run.path, narrator.say),
        record_status(run, trainer),
        journal,
    ):
        solve_tail(trainer, run, evaluations)
        yield [Narration(metrics, narrator), evaluations, checkpoints, lambda *_: look()]
        finish(trainer, run, checkpoints, sets.get("test"), planned_bytes)
        narrator.close()
