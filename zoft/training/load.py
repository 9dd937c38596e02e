"""The parts of a run, loaded and built in the order in which the data travels."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from peft import PeftModel
from torch import nn
from transformers import PreTrainedModel

from zoft import __version__
from zoft.data.examples import Example, length
from zoft.data.sets import Data
from zoft.engine.build import Engine, estimator_for, streamer_for, tail_for
from zoft.engine.objectives.objective import objective_for
from zoft.engine.offload.weights import Streamed
from zoft.engine.optimizers.optimizer import optimizer_for
from zoft.engine.optimizers.update import Resident, Weights, tuned_weights
from zoft.engine.probe.leaves import UnreadParameters
from zoft.engine.probe.structures.table import layout_of
from zoft.engine.probe.view import ProbedModel
from zoft.engine.tail.head import FILE as TAIL
from zoft.engine.tail.head import HeadRows
from zoft.engine.tail.moving import MovingTail
from zoft.inference.scoring import needs_mask, require_fits
from zoft.models import load
from zoft.models.adapters import attach_adapter, load_adapter
from zoft.models.prefix import begin_with_activations
from zoft.models.storage.fetch import local_safetensors
from zoft.models.trainable import decays, idle_towers, parameter_ids, tuned_parameters
from zoft.planning.memory.exact_blocks import with_exact_blocks
from zoft.planning.placement import Choice, budgets, choose, placed
from zoft.planning.workload import shape_of
from zoft.recipe.resolved import Resolved
from zoft.runs.checkpoint import stored_state
from zoft.runs.folder import RunFolder
from zoft.runs.journal import Header
from zoft.system.device import DTYPES, make_repeatable
from zoft.system.host_memory import hand_back_freed_memory, keep_freed_memory
from zoft.training.warm_start import adapter_folder

LOOK_TOKENS = 256  # in the rows that show what reads what, at most

Say = Callable[[str], None]


@dataclass(frozen=True)
class Model:
    """The model of a run. `base` knows the blocks that are still in their files; `new_adapter` is
    true for an adapter that no run has tuned yet."""

    model: PreTrainedModel | PeftModel
    base: load.Loaded
    files: Path
    new_adapter: bool
    resumed: bool


def base_files(recipe: Resolved, say: Say) -> Path:
    """The base model's folder of safetensors, fetched and converted if need be."""
    make_repeatable(torch.device(recipe.device))
    hand_back_freed_memory()
    return local_safetensors(
        recipe.model.name,
        recipe.model.revision,
        trust_remote_code=recipe.model.trust_remote_code,
        say=say,
    )


def choose_placement(recipe: Resolved, data: Data, say: Say) -> tuple[Resolved, Choice]:
    """Where the weights will be, the fastest place that the memory budgets allow, and the recipe with
    that and with as many exact blocks as they allow, where it asks for these."""
    shape, limits = shape_of(recipe, data.examples, len(data.tokenizer)), budgets(recipe)
    recipe, shape = with_exact_blocks(recipe, shape, limits[0])
    place = choose(recipe, shape, *limits)
    if place.residency != "device":
        say(f"residency: {place.why}")
    return placed(recipe, place), place


def load_model(
    recipe: Resolved,
    run: RunFolder,
    files: Path,
    place: Choice,
    saved: Path | None,
    *,
    resumed: bool,
) -> Model:
    """The model as the checkpoint `saved` left it, else as the run began, with its adapter."""
    own, adapts = DTYPES[recipe.model.dtype], recipe.tune.method != "full"
    base = load.load_model(
        saved if saved and not adapts else files,
        recipe.model,
        # What is frozen is stored as it is computed with.
        dtype=DTYPES[recipe.model.compute_dtype] if adapts else own,
        device=torch.device(recipe.device),
        streamed=None if place.residency == "device" else place.streams,
    )
    keep_freed_memory()
    model: PreTrainedModel | PeftModel = base.model
    adapter = saved or (run.start if resumed else None)
    if adapts and not adapter and recipe.tune.adapter:
        adapter = adapter_folder(recipe.tune.adapter)
    if adapts and adapter:
        model = load_adapter(base.model, adapter, own)
    elif resumed and not saved and (run.start / TAIL).is_file():
        HeadRows.read(run.start).put(model)
    elif adapts:
        model = attach_adapter(base.model, recipe.tune, recipe.seed, own)
    return Model(model, base, files, new_adapter=adapts and not adapter, resumed=resumed)


def build_engine(
    recipe: Resolved,
    run: RunFolder,
    loaded: Model,
    data: Data,
    place: Choice,
    saved: Path | None,
    say: Say,
) -> Engine:
    """Everything that takes steps. Raises DataError, RecipeError for rows or a model that do not fit."""
    model, device = loaded.model, torch.device(recipe.device)
    objective = objective_for(recipe.objective.name)
    for examples in data.examples.values():
        require_fits(model, examples, objective, data.tokenizer)
    parameters = tuned_parameters(model, recipe.tune)
    ids = parameter_ids(parameters)
    tuned = tuned_weights(parameters, ids, decays(model))
    streamer = streamer_for(
        recipe,
        loaded.base,
        tuned,
        stored_state(saved) if saved else {},
        residency="host" if place.residency == "host" else "disk",
        slots=place.slots,
        working=run.working,
        say=say,
    )
    weights: Weights = Streamed(tuned, streamer) if streamer else Resident(tuned)
    load.require_causal(recipe.model.name, loaded.base.model, tuned=True)
    if isinstance(model, PeftModel) and recipe.tune.method == "prefix" and loaded.new_adapter:
        begin_with_activations(model, recipe.seed)
    with load.forward_explained(recipe.model.name, recipe.model.compute_dtype):
        view = _probed(recipe, model, parameters, ids, data.examples["train"])
        first = data.examples["train"][: recipe.train.batch_size]
        view.masked = (
            run.manifest()["attention_mask"]
            if loaded.resumed
            else needs_mask(view, objective, first, device)
        )
    if idle := idle_towers(model, recipe.tune):
        say(f"left as it is, for text does not pass through it: {', '.join(idle)}")
    tail = tail_for(recipe, view)
    for learning in _learning(recipe, parameters, tail):
        say(learning)
    return Engine(
        model=model,
        device=device,
        view=view,
        estimator=estimator_for(recipe, view),
        objective=objective,
        optimizer=optimizer_for(recipe.optimizer, recipe.seed, weights),
        weights=weights,
        streamer=streamer,
        tail=tail,
    )


def _learning(
    recipe: Resolved, parameters: Mapping[str, nn.Parameter], tail: MovingTail | None
) -> Iterator[str]:
    """Say what learns, and how."""
    total, settings = sum(p.numel() for p in parameters.values()), recipe.optimizer
    where = f"{recipe.model.compute_dtype} on {recipe.device}"
    if parameters:
        yield (
            f"tuning {total:,} weights in {len(parameters)} tensors, {settings.name}, "
            f"lr {settings.lr:g}, perturbation {settings.perturbation:g}, {where}"
        )
    if tail:
        exact = tail.blocks.parameters
        number = sum(p.numel() for p in exact.values())
        alone = "" if parameters else f"; no probes: this is first-order tuning, {where}"
        yield (
            f"tuning {number:,} weights in {len(exact)} tensors by exact gradients, "
            f"lr {tail.lr:g}{alone}"
        )


def _probed(
    recipe: Resolved,
    model: PreTrainedModel | PeftModel,
    parameters: dict[str, nn.Parameter],
    ids: dict[str, int],
    examples: Sequence[Example],
) -> ProbedModel:
    """The model as probes see it. Raises RecipeError for parameters that no row of the data reads."""
    device, compute = torch.device(recipe.device), DTYPES[recipe.model.compute_dtype]
    few = torch.tensor([[1, 2, 3, 4]], device=device)
    try:
        return ProbedModel(model, parameters, ids, compute, few)
    except UnreadParameters:  # some are read every so many tokens only (DeepSeek-V4's compressors)
        tokens = min(max(map(length, examples)), LOOK_TOKENS)
        if tokens <= few.numel():
            raise
        return ProbedModel(
            model, parameters, ids, compute, few.repeat(1, -(-tokens // 4))[:, :tokens]
        )


def header_of(recipe: Resolved, engine: Engine, data: Data, loaded: Model) -> Header:
    """The journal's first line, but for what the preflight finds."""
    examples = data.examples["train"]
    return {
        "layout": layout_of(
            recipe.optimizer.structure, (w.parameter.shape for w in engine.weights)
        ),
        "zoft": __version__,
        "seed": recipe.seed,
        "base": {
            "name": recipe.model.name,
            "revision": loaded.base.model.config._commit_hash or recipe.model.revision,
            "sha256": load.fingerprint(loaded.files),
        },
        "data": {"rows": len(examples), "sha256": digest_of(examples)},
        "dtype": recipe.model.dtype,
        "tune": recipe.tune.model_dump(mode="json"),
        "optimizer": recipe.optimizer.model_dump(mode="json"),
        "parameters": [
            [w.name, w.param, list(w.parameter.shape), w.decays] for w in engine.weights
        ],
    }


def digest_of(examples: Sequence[Example]) -> str:
    """sha256 of the examples as they are trained on: tokens, options, labels, order."""
    digest = hashlib.sha256()
    for example in examples:
        trained = {key: value for key, value in asdict(example).items() if key != "answers"}
        digest.update(json.dumps(trained).encode())
    return digest.hexdigest()
