"""`zoft train`: every part of a run, built in the order in which the data travels."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from contextlib import closing
from dataclasses import asdict
from pathlib import Path

import torch
from peft import PeftModel
from transformers import PreTrainedModel

from zoft import __version__
from zoft.data.examples import Example
from zoft.data.sets import prepare
from zoft.engine.build import estimator_for, order_for, streamer_for
from zoft.engine.objectives.objective import objective_for
from zoft.engine.offload.weights import Streamed
from zoft.engine.optimizers.optimizer import optimizer_for
from zoft.engine.optimizers.update import Resident, tuned_weights
from zoft.engine.probe.view import ProbedModel
from zoft.errors import RecipeError
from zoft.inference.scoring import needs_mask, require_fits, with_metric
from zoft.models.adapters import attach_adapter, load_adapter
from zoft.models.load import fingerprint, load_model, load_tokenizer, require_causal
from zoft.models.prefix import begin_with_activations
from zoft.models.storage.fetch import local_safetensors
from zoft.models.targets import target_endings
from zoft.models.trainable import decays, parameter_ids, tuned_parameters
from zoft.planning.out_of_memory import Explained, memory_explained
from zoft.planning.placement import budgets, choose, settled
from zoft.planning.resolve import resolve
from zoft.planning.workload import shape_of
from zoft.recipe.defaults import with_defaults
from zoft.recipe.load import load_recipe, recipe_text
from zoft.recipe.schema import Recipe
from zoft.runs.checkpoint import stored_state
from zoft.runs.console.narrator import Narrator, narrator_for
from zoft.runs.folder import RunFolder, keep_choices, require_empty, require_same, run_of
from zoft.runs.journal import Header
from zoft.runs.metrics import Metrics
from zoft.runs.report.page import reported
from zoft.runs.trackers.launcher import require_installed, tracked
from zoft.sharing.hub.push import pusher_for
from zoft.system.device import DTYPES, make_repeatable, peak_memory_bytes
from zoft.system.host_memory import hand_back_freed_memory, keep_freed_memory
from zoft.system.philox import LAYOUT
from zoft.system.signals import Stop, stop_on_signals
from zoft.training.finish import already_finished, finish, recorded, tell_result
from zoft.training.start import begin, go_on
from zoft.training.trainer import Trainer
from zoft.training.warm_start import adapter_folder, continued


def train(
    source: str,
    overrides: Sequence[str] = (),
    *,
    resume: str = "none",
    output_dir: str | None = None,
) -> None:
    """Tune a model by a recipe and leave the result in its run folder.

    `source` is a path or a packaged recipe's name; `resume` is none, auto, a run or a checkpoint.
    Raises ZoftError.
    """
    recipe = load_recipe(source, overrides)
    folder, at = _folder(recipe, resume, output_dir)
    resuming = resume != "none" and folder.exists
    if resuming:
        recipe = keep_choices(recipe, folder.previous())
    recipe = continued(recipe, folder.start if resuming else None)
    recipe = resolve(with_defaults(recipe.model_copy(update={"output_dir": str(folder.path)})))
    if resuming:
        require_same(recipe, folder.previous())
        if already_finished(folder, recipe):
            return
    require_installed(recipe.logging.trackers)
    device = torch.device(recipe.device)

    def variant(*more: str) -> Recipe:
        return resolve(with_defaults(continued(load_recipe(source, [*overrides, *more]))))

    with (
        stop_on_signals("; nothing is lost: go on with --resume auto") as stop,
        memory_explained(recipe, variant) as explained,
        closing(narrator_for(recipe, lambda: peak_memory_bytes(device))) as narrator,
    ):
        pusher = pusher_for(recipe, narrator.say, stop)
        saved = folder.newest_checkpoint(at) if resuming else None
        trainer, header = build(recipe, folder, saved, resuming, stop, narrator, explained)
        trainer.after_checkpoint = pusher.at_checkpoint
        if resuming:
            journal = go_on(trainer, folder, header)
        else:
            journal = begin(trainer, folder, header, recipe_text(source))
        with (
            closing(trainer),
            tracked(folder, recipe.logging.trackers, narrator.say, stop) as trainer.metrics.after,
            reported(folder.path, narrator.say),
            recorded(folder, trainer),
            journal,
        ):
            trainer.fit(journal)
            finish(trainer, folder)
        tell_result(folder)
        pusher.at_end(trainer.recipe, folder)


def _folder(recipe: Recipe, resume: str, output_dir: str | None) -> tuple[RunFolder, Path | None]:
    """The run's folder, and the checkpoint that `--resume PATH` names."""
    if resume in ("none", "auto"):
        assert recipe.output_dir is not None
        folder, at = RunFolder(Path(output_dir or recipe.output_dir).expanduser()), None
    else:
        folder, at = run_of(Path(resume).expanduser())
        if output_dir is not None and Path(output_dir).resolve() != folder.path.resolve():
            raise RecipeError(f"--resume {resume} goes on in {folder.path}: leave out --output-dir")
    if resume == "none" or not folder.exists:
        require_empty(folder)
    return folder, at


def build(
    recipe: Recipe,
    folder: RunFolder,
    saved: Path | None,
    resuming: bool,
    stop: Stop,
    narrator: Narrator,
    explained: Explained,
) -> tuple[Trainer, Header]:
    """Load everything: the model as the checkpoint `saved` left it, else as the run began."""
    device = torch.device(recipe.device)
    make_repeatable(device)
    hand_back_freed_memory()
    where = local_safetensors(
        recipe.model.name,
        recipe.model.revision,
        trust_remote_code=recipe.model.trust_remote_code,
        say=narrator.say,
    )
    tokenizer = load_tokenizer(where, recipe.model)
    recipe, sets = prepare(recipe, tokenizer, say=narrator.say, check=stop.check)
    explained.sets = {name: encoded.examples for name, encoded in sets.items()}
    place = choose(recipe, shape_of(recipe, explained.sets), *budgets(recipe))
    recipe = settled(recipe, place)
    if place.residency != "device":
        narrator.say(f"residency: {place.why}")
    compute = DTYPES[recipe.model.compute_dtype]
    own = DTYPES[recipe.model.dtype]
    adapts = recipe.tune.method != "full"
    loaded = load_model(
        saved if saved and not adapts else where,
        recipe.model,
        dtype=compute if adapts else own,  # what is frozen is stored as it is computed with
        device=device,
        streamed=None
        if place.residency == "device"
        else lambda block: block not in place.resident_blocks,
    )
    model: PreTrainedModel | PeftModel = loaded.model
    keep_freed_memory()
    adapter = saved or (folder.start if resuming else None)
    if adapts:
        recipe = _with_targets(recipe, loaded.model)
        if not adapter and recipe.tune.adapter:
            adapter = adapter_folder(recipe.tune.adapter)
        if adapter:
            model = load_adapter(loaded.model, adapter, own)
        else:
            model = attach_adapter(loaded.model, recipe.tune, recipe.seed, own)
    objective = objective_for(recipe.objective.name)  # type: ignore[arg-type]
    for encoded in sets.values():
        require_fits(model, encoded.examples, objective)
    if "eval" in sets:
        recipe = with_metric(recipe, sets["eval"].examples)
    parameters = tuned_parameters(model, recipe.tune)
    ids = parameter_ids(parameters)
    tuned = tuned_weights(parameters, ids, decays(model))
    streamer = streamer_for(
        recipe,
        loaded,
        tuned,
        stored_state(saved) if saved else {},
        slots=place.slots,
        working=folder.working,
        say=narrator.say,
    )
    weights = Streamed(tuned, streamer) if streamer else Resident(tuned)
    require_causal(recipe.model.name, loaded.model)
    if recipe.tune.method == "prefix" and not adapter:
        assert isinstance(model, PeftModel)
        begin_with_activations(model, recipe.seed)
    probe = torch.tensor([[1, 2, 3, 4]], device=device)
    view = ProbedModel(model, parameters, ids, compute, probe)
    estimator = estimator_for(recipe, view)
    train_set = sets["train"].examples
    view.masked = (
        folder.manifest()["attention_mask"]
        if resuming
        else needs_mask(view, objective, train_set[: recipe.train.batch_size], device)
    )
    trainer = Trainer(
        recipe=recipe,
        folder=folder.path,
        device=device,
        model=model,
        tokenizer=tokenizer,
        estimator=estimator,
        objective=objective,
        optimizer=optimizer_for(recipe.optimizer, recipe.seed, weights),
        weights=weights,
        train_set=train_set,
        order=order_for(recipe, train_set),
        eval_set=sets["eval"].examples if "eval" in sets else None,
        test_set=sets["test"].examples if "test" in sets else None,
        metrics=Metrics(folder.metrics),
        narrator=narrator,
        stop=stop,
        streamer=streamer,
        planned_bytes=place.footprint.device,
    )
    if saved:
        trainer.load(saved)
    total = sum(p.numel() for p in parameters.values())
    narrator.say(
        f"tuning {total:,} weights in {len(parameters)} tensors, {recipe.optimizer.name}, "
        f"lr {recipe.optimizer.lr:g}, perturbation {recipe.optimizer.perturbation:g}, "
        f"{recipe.model.compute_dtype} on {recipe.device}"
    )
    header: Header = {
        "layout": LAYOUT,
        "zoft": __version__,
        "seed": recipe.seed,
        "base": {
            "name": recipe.model.name,
            "revision": loaded.model.config._commit_hash or recipe.model.revision,
            "sha256": fingerprint(where),
        },
        "data": {"rows": len(train_set), "sha256": _digest(train_set)},
        "dtype": recipe.model.dtype,
        "tune": recipe.tune.model_dump(mode="json"),
        "optimizer": recipe.optimizer.model_dump(mode="json"),
        "parameters": [[w.name, w.param, list(w.parameter.shape), w.decays] for w in tuned],
    }
    return trainer, header


def _with_targets(recipe: Recipe, base: PreTrainedModel) -> Recipe:
    """The recipe with the modules that `tune.target_modules: auto` means in this model."""
    tune = recipe.tune
    if tune.target_modules != "auto" or tune.method not in ("lora", "ia3"):
        return recipe
    tune = tune.model_copy(update={"target_modules": sorted(target_endings(base, tune))})
    return recipe.model_copy(update={"tune": tune})


def _digest(examples: Sequence[Example]) -> str:
    """sha256 of the examples as they are trained on: tokens, options, labels, order."""
    digest = hashlib.sha256()
    for example in examples:
        trained = {key: value for key, value in asdict(example).items() if key != "answers"}
        digest.update(json.dumps(trained).encode())
    return digest.hexdigest()
