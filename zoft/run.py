"""`zoft train`: every part of a run, built in the order in which the data travels."""

from __future__ import annotations

import hashlib
import json
import platform
import re
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel

from zoft import __version__, checkpoint
from zoft.data.encoding import Encoded, encode
from zoft.data.examples import Example
from zoft.data.sources import load_rows
from zoft.errors import Diverged, EnvironmentProblem, Interrupted, OutOfMemory, RecipeError
from zoft.interrupts import Stop, stop_on_signals
from zoft.journal import Entry, Header, Journal
from zoft.kernels.philox import LAYOUT
from zoft.machine import DTYPES, make_repeatable, peak_memory_bytes, resolve
from zoft.models.adapters import attach_lora, load_adapter
from zoft.models.convert import local_safetensors
from zoft.models.load import fingerprint, load_model, load_tokenizer
from zoft.models.tuned import decays, parameter_ids, tuned_parameters
from zoft.objectives.objective import objective_for
from zoft.recipe.defaults import with_defaults
from zoft.recipe.load import dump_recipe, load_recipe, recipe_text
from zoft.recipe.schema import DataSource, Recipe
from zoft.run_folder import RunFolder, keep_choices, require_empty, require_same, run_of
from zoft.scoring import needs_mask
from zoft.tracking import Metrics, Narrator, in_words, narrator_for
from zoft.trainer import Trainer
from zoft.zo.diagnostics import measure_delivery, measure_noise
from zoft.zo.estimators import Estimator
from zoft.zo.optimizers.mezo import MeZO
from zoft.zo.optimizers.radazo import RAdaZO, Rule
from zoft.zo.optimizers.sweep import Tuned, tuned_weights
from zoft.zo.probe import View


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
    recipe = resolve(with_defaults(recipe.model_copy(update={"output_dir": str(folder.path)})))
    if resuming:
        require_same(recipe, folder.previous())
        if _already_finished(folder, recipe):
            return
    with stop_on_signals() as stop, _memory_explained(recipe):
        trainer, header = _build(
            recipe, folder, folder.newest_checkpoint(at) if resuming else None, stop, resuming
        )
        if resuming:
            journal = _go_on(trainer, folder, header)
        else:
            journal = _begin(trainer, folder, header, recipe_text(source))
        with _status(folder, trainer), journal:
            trainer.fit(journal)
            _finish(trainer, folder)


def _folder(recipe: Recipe, resume: str, output_dir: str | None) -> tuple[RunFolder, Path | None]:
    """The run's folder, and the checkpoint that `--resume PATH` names."""
    if resume in ("none", "auto"):
        assert recipe.output_dir is not None
        folder, at = RunFolder(Path(output_dir or recipe.output_dir)), None
    else:
        folder, at = run_of(Path(resume))
        if output_dir is not None and Path(output_dir).resolve() != folder.path.resolve():
            raise RecipeError(f"--resume {resume} goes on in {folder.path}: leave out --output-dir")
    if resume == "none":
        require_empty(folder)
    return folder, at


def _build(
    recipe: Recipe, folder: RunFolder, saved: Path | None, stop: Stop, resuming: bool
) -> tuple[Trainer, Header]:
    """Load everything: the model as the checkpoint `saved` left it, else as the run began."""
    device = torch.device(recipe.device)
    make_repeatable(device)
    narrator = narrator_for(recipe.train.steps, 0, recipe.logging.every)
    where = local_safetensors(
        recipe.model.name,
        recipe.model.revision,
        trust_remote_code=recipe.model.trust_remote_code,
        say=narrator.say,
    )
    tokenizer = load_tokenizer(where, recipe.model)
    sets = {
        name: _encoded(name, source, recipe, tokenizer, narrator)
        for name, source in _sources(recipe)
    }
    stop.check()
    compute = DTYPES[recipe.model.compute_dtype]
    own = DTYPES[recipe.model.dtype]
    lora = recipe.tune.method == "lora"
    model = load_model(
        saved if saved and not lora else where,
        recipe.model,
        dtype=compute if lora else own,  # what is frozen is stored as it is computed with
        device=device,
    )
    if lora:
        adapter = saved or (folder.start if resuming else None)
        if adapter:
            model = load_adapter(model, adapter, own)
        else:
            model = attach_lora(model, recipe.tune, recipe.seed, own)
        recipe = _with_targets(recipe, model)
    parameters = tuned_parameters(model, recipe.tune)
    ids = parameter_ids(parameters)
    probe = torch.tensor([[1, 2, 3, 4]], device=device)
    view = View(model, parameters, ids, compute, probe)
    estimator = _estimator(recipe, view)
    objective = objective_for(recipe.objective.name)  # type: ignore[arg-type]
    weights = tuned_weights(parameters, ids, decays(model))
    train_set = sets["train"].examples
    trainer = Trainer(
        recipe=recipe,
        folder=folder.path,
        device=device,
        model=model,
        tokenizer=tokenizer,
        estimator=estimator,
        objective=objective,
        optimizer=_optimizer(recipe, weights),
        train_set=train_set,
        eval_set=sets["eval"].examples if "eval" in sets else None,
        masked=needs_mask(view, objective, train_set[: recipe.train.batch_size], device),
        metrics=Metrics(folder.metrics),
        narrator=narrator,
        stop=stop,
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
            "revision": recipe.model.revision,
            "sha256": fingerprint(where),
        },
        "data": {"rows": len(train_set), "sha256": _digest(train_set)},
        "dtype": recipe.model.dtype,
        "optimizer": recipe.optimizer.model_dump(mode="json"),
        "parameters": [[w.name, w.param, list(w.parameter.shape), w.decays] for w in weights],
    }
    return trainer, header


def _with_targets(recipe: Recipe, model: PeftModel) -> Recipe:
    """The recipe with the modules that `tune.target_modules: auto` turned out to mean."""
    found = model.peft_config["default"].target_modules
    assert found is not None
    tune = recipe.tune.model_copy(update={"target_modules": sorted(found)})
    return recipe.model_copy(update={"tune": tune})


def _sources(recipe: Recipe) -> list[tuple[str, DataSource]]:
    data = recipe.data
    named = [("train", data.train), ("eval", data.eval), ("test", data.test)]
    return [(name, source) for name, source in named if source is not None]


def _encoded(
    name: str, source: DataSource, recipe: Recipe, tokenizer: Any, narrator: Narrator
) -> Encoded:
    found = encode(
        load_rows(source), recipe.data, tokenizer, choice=recipe.objective.name == "choice"
    )
    counts = found.counts
    left_out = [
        f"{number} {what}"
        for number, what in (
            (counts.truncated, "truncated"),
            (counts.too_long, "too long, dropped"),
            (counts.untrained, "without a trained token, dropped"),
        )
        if number
    ]
    narrator.say(f"{name}: {', '.join([f'{counts.kept:,} of {counts.read:,} rows', *left_out])}")
    return found


def _estimator(recipe: Recipe, view: View) -> Estimator:
    settings = recipe.optimizer
    assert isinstance(settings.perturbation, float)
    return Estimator(
        view,
        seed=recipe.seed,
        gaussian=settings.distribution == "gaussian",
        perturbation=settings.perturbation,
        directions=settings.directions,
        sides=settings.sides,
    )


def _optimizer(recipe: Recipe, weights: list[Tuned]) -> MeZO | RAdaZO:
    settings = recipe.optimizer
    gaussian = settings.distribution == "gaussian"
    match settings.name:
        case "mezo":
            return MeZO(
                weights, seed=recipe.seed, gaussian=gaussian, weight_decay=settings.weight_decay
            )
        case "r-adazo":
            assert settings.moments != "auto"
            assert isinstance(settings.window, int)
            rule = Rule(
                betas=settings.betas,
                eps=settings.eps,
                bias_correction=settings.bias_correction,
                moments=settings.moments,
                window=settings.window,
                fold_momentum=settings.fold_momentum,
                weight_decay=settings.weight_decay,
            )
            return RAdaZO(weights, rule, seed=recipe.seed, gaussian=gaussian)


def _digest(examples: Sequence[Example]) -> str:
    """sha256 of the examples as they are trained on: tokens, options, labels, order."""
    digest = hashlib.sha256()
    for example in examples:
        digest.update(json.dumps(asdict(example)).encode())
    return digest.hexdigest()


def _begin(trainer: Trainer, folder: RunFolder, header: Header, text: str) -> Journal:
    """Look at the signal, then make the folder: nothing is left behind by a run that can't start."""
    header["noise"] = _look_at_the_signal(trainer)
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
        versions=_versions(),
        device=trainer.recipe.device,
        cpu=platform.processor() or platform.machine(),
        threads=torch.get_num_threads(),
        attention_mask=trainer.masked,
        base=header["base"],
        data=header["data"],
        noise=header["noise"],
    )
    return Journal.create(folder.journal, header, trainer.recipe.journal.sync_seconds)


def _go_on(trainer: Trainer, folder: RunFolder, header: Header) -> Journal:
    """Check that base and data are the run's, then apply the steps behind the checkpoint."""
    journal, old, entries = Journal.reopen(folder.journal, trainer.recipe.journal.sync_seconds)
    try:
        for what, name in (("base", "model"), ("data", "training data")):
            if old[what]["sha256"] != header[what]["sha256"]:
                raise EnvironmentProblem(
                    f"the {name} is not the one that {folder.path} was started with "
                    f"(sha256 {header[what]['sha256'][:12]}, was {old[what]['sha256'][:12]})"
                )
        _replay(trainer, entries)
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


def _replay(trainer: Trainer, entries: Sequence[Entry]) -> None:
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


def _look_at_the_signal(trainer: Trainer) -> dict[str, Any]:
    """Measure and tell what METHODS sections 2 and 6 warn of: noise of c, rounding of the probe."""
    estimator, say = trainer.estimator, trainer.narrator.say
    batches = trainer.batches(1)
    noise = measure_noise(estimator, lambda: trainer.loss(batches))
    ratio = noise.signal_to_noise
    say(
        f"signal-to-noise of the projected gradient: {min(ratio, 9999):.1f} "
        f"(|c| {noise.projected_grad:.3g}; doubling the perturbation changes c by {noise.bias:.0%})"
    )
    if ratio < 3:
        say(
            "warning: the forward pass's rounding hides the signal; try a larger "
            "optimizer.perturbation or model.compute_dtype=float32"
        )
    found: dict[str, Any] = {
        "projected_grad": noise.projected_grad,
        "noise": noise.noise,
        "bias": noise.bias,
    }
    direction = estimator.direction(0, 0)
    delivery = measure_delivery(estimator.view, direction, estimator.perturbation)
    if delivery is not None:
        found["lost"], found["gain"] = delivery.lost, delivery.gain
        say(
            f"rounding to {trainer.recipe.model.compute_dtype} loses {delivery.lost:.1%} of the "
            f"perturbation, mean gain {delivery.gain:.2f}"
        )
        if delivery.lost > 0.05 or abs(delivery.gain - 1) > 0.15:
            say("warning: raise optimizer.perturbation or set model.compute_dtype=float32")
    return found


def _finish(trainer: Trainer, folder: RunFolder) -> None:
    """Save final/, then score the test set once, then say how it went."""
    recipe = trainer.recipe

    def write(target: Path) -> None:
        checkpoint.write_model(target, trainer.model, trainer.tokenizer)
        (target / "recipe.yaml").write_text(dump_recipe(recipe), encoding="utf-8")

    checkpoint.save(folder.final, write)
    values: dict[str, Any] = {}
    if recipe.data.test is not None:
        found = encode(
            load_rows(recipe.data.test),
            recipe.data,
            trainer.tokenizer,
            choice=recipe.objective.name == "choice",
        )
        values = {"set": "test", **trainer.evaluate(found.examples)}
    elif trainer.eval_set is not None:
        scored = trainer.scores[trainer.step]
        kept: dict[str, Any] = {
            key: scored[key] for key in ("accuracy", "loss", "rows", "seconds") if key in scored
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
    _tell_result(folder, event, before, trainer.scores.get(trainer.step))


def _tell_result(
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


def _already_finished(folder: RunFolder, recipe: Recipe) -> bool:
    """Whether nothing is left to do; then say what came out."""
    manifest = folder.manifest()
    final = manifest.get("final")
    if manifest.get("status") != "finished" or not final or final["step"] < recipe.train.steps:
        return False
    if final["step"] > recipe.train.steps:
        raise RecipeError(
            f"train.steps: the run in {folder.path} already took {final['step']} steps"
        )
    print(f"{folder.path} is finished ({final['step']} steps)")
    evals = {e["step"]: e for e in Metrics(folder.metrics).read() if e["event"] == "eval"}
    _tell_result(folder, final, manifest.get("zero_shot"), evals.get(final["step"]))
    return True


@contextmanager
def _status(folder: RunFolder, trainer: Trainer) -> Iterator[None]:
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
        trainer.narrator.close()
        folder.update_manifest(
            status=status,
            step=trainer.step,
            skipped=trainer.skipped,
            seconds=round(folder.manifest().get("seconds", 0.0) + time.perf_counter() - begun, 1),
        )


@contextmanager
def _memory_explained(recipe: Recipe) -> Iterator[None]:
    """Turn the allocators' errors into one line with the overrides that need less."""
    try:
        yield
    except (MemoryError, RuntimeError) as error:  # torch's own is a RuntimeError
        text = str(error)
        if isinstance(error, RuntimeError) and not re.search("out of memory|allocate memory", text):
            raise
        assert isinstance(recipe.train.micro_batch_size, int)
        ways = [
            f"train.micro_batch_size={max(1, recipe.train.micro_batch_size // 2)}",
            f"eval.batch_size={max(1, recipe.eval.batch_size // 2)}",
        ]
        if recipe.tune.method == "full":
            ways.append("tune.method=lora")
        first = next(iter(text.splitlines()), "no more memory")
        raise OutOfMemory(f"out of memory: {first}; try {', '.join(ways)}") from error


def _versions() -> dict[str, str]:
    packages = ("torch", "transformers", "peft", "datasets", "numba", "numpy", "safetensors")
    return {
        "zoft": __version__,
        "python": platform.python_version(),
        **{name: version(name) for name in packages},
    }
