"""`zoft validate`: would this recipe run? Every check that takes no step, and nothing written.

The checks go through the functions that a run uses, so both say the same. One that needs what another
could not find is left out, and says so.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from huggingface_hub import HfApi
from transformers import PreTrainedTokenizerBase

from zoft.data.encoding import Encoded
from zoft.data.examples import length
from zoft.data.sets import SETS, Data, in_words, prepare, silent
from zoft.data.sources import load_rows
from zoft.engine.objectives.objective import objective_for
from zoft.engine.tail.head import label_words
from zoft.errors import EnvironmentProblem, ZoftError
from zoft.inference.scoring import require_fits
from zoft.models.adapters import is_adapter
from zoft.models.meta import load_config
from zoft.models.storage.fetch import cache_folder, local_folder, local_safetensors
from zoft.models.storage.safetensors import WEIGHTS, WEIGHTS_INDEX, stored_tensors
from zoft.planning.doctor.model import decoder_lines
from zoft.planning.memory.exact_blocks import with_exact_blocks
from zoft.planning.memory.footprint import footprint
from zoft.planning.placement import budgets, choose
from zoft.planning.resolve import on_device, resolve, with_data
from zoft.planning.workload import Shape, shape_of
from zoft.recipe.load import load_recipe
from zoft.recipe.resolved import Resolved
from zoft.recipe.schema import ModelSection, Recipe
from zoft.recipe.sections.data import listed
from zoft.runs.checkpoint import require_space
from zoft.runs.folder import RunFolder, require_empty
from zoft.sharing.base_model import base_of
from zoft.sharing.hub.access import require_login
from zoft.sharing.hub.retry import hub_client, no_check
from zoft.system.atomic_io import existing
from zoft.system.device import DTYPES
from zoft.system.host_memory import gib
from zoft.system.signals import stop_on_signals
from zoft.training.checks import Report
from zoft.training.dry_run import dry_run
from zoft.training.load import base_files
from zoft.training.warm_start import tokenizer_for, warm_start

PROBED_BYTES = 8 * 2**30  # of weights: what is read within seconds


def validate(source: str, overrides: Sequence[str] = ()) -> None:
    """Check a recipe and all that it names.

    Raises ZoftError with every problem, one a line: RecipeError if one is of the recipe, else DataError,
    else EnvironmentProblem.
    """
    recipe = load_recipe(source, overrides)
    report = Report()
    with report.check("recipe") as ok:
        ok("every key is known and every value fits")
    with report.check("run folder") as ok:
        ok(_run_folder(recipe))
    with report.check("device") as ok:
        here = on_device(recipe)
        ok(f"{here.device}, computing in {here.model.compute_dtype}")
    recipe = _settled(_begun(recipe, report))
    config = shape = tokenizer = None
    with report.check("model") as ok:
        if is_adapter(recipe.model.name):
            local_safetensors(recipe.model.name, None)  # says that it is one
        config = load_config(recipe.model)
        ok(f"{config.model_type}, {_numbers(shape := shape_of(recipe))}, {_weights(recipe.model)}")
        for what, said in decoder_lines(recipe.model)[1:]:
            print(f"{'':11} {what}: {said}")
    if config is None:
        report.skip("tokenizer", "there is no model")
    else:
        with report.check("tokenizer") as ok:
            tokenizer = tokenizer_for(recipe)
            ok(f"{len(tokenizer):,} tokens")
    sets: dict[str, Encoded] = {}
    names = [name for name in SETS if getattr(recipe.data, name) is not None]
    for name in names:
        with report.check(f"data.{name}") as ok, _named(f"data.{name}"):
            if tokenizer is None:
                number = sum(len(load_rows(x)) for x in listed(getattr(recipe.data, name)))
                ok(f"{number:,} rows; labels and lengths not looked at, without a tokenizer")
                continue
            recipe, sets[name] = _examples(name, recipe, tokenizer, shape)
            longest = max(map(length, sets[name].examples))
            ok(f"{in_words(sets[name].counts)}, up to {longest} tokens")
    known = len(sets) == len(names)
    if shape is not None and sets:
        assert tokenizer is not None
        read = {name: sets[name].examples if name in sets else None for name in names}
        shape = shape_of(recipe, read, len(tokenizer))
    _check_sizes(report, recipe, shape)
    if why := _unprobed(recipe, shape, known, report):
        report.skip("probes", why)
    else:
        assert tokenizer is not None
        data = Data(tokenizer, recipe.data.format, sets)
        with report.check("probes") as ok:
            ok(_probes(recipe, data))
    if recipe.hub.push != "never":
        with report.check("hub") as ok:
            ok(_hub(recipe))
    report.end()


def _check_sizes(report: Report, recipe: Resolved, shape: Shape | None) -> None:
    """Memory and disk, which follow from the model."""
    if shape is None:
        report.skip("memory", "it follows from the model")
        report.skip("disk", "it follows from the model")
        return
    with report.check("memory") as ok, _named("memory"):
        ok(_memory(recipe, shape))
    with report.check("disk") as ok:
        ok(_disk(recipe, shape))


def _run_folder(recipe: Recipe) -> str:
    assert recipe.output_dir is not None
    folder = RunFolder(Path(recipe.output_dir).expanduser())
    if folder.exists:
        return f"{folder.path} holds a run, which --resume auto goes on with"
    require_empty(folder)
    return f"{folder.path} is free"


def _begun(recipe: Recipe, report: Report) -> Recipe:
    """With what its names of a run and an adapter stand for; without an adapter that is a problem."""
    if recipe.tune.adapter is None and not RunFolder(Path(recipe.model.name).expanduser()).exists:
        return recipe
    with report.check("start") as ok:
        begun = warm_start(recipe)
        ok(f"goes on from {recipe.tune.adapter or recipe.model.name}")
        return begun
    tune = recipe.tune.model_copy(update={"adapter": None})
    return recipe.model_copy(update={"tune": tune})


def _settled(recipe: Recipe) -> Resolved:
    """As if a device, a library or a model were there, if they are not: the checks say so."""
    try:
        return resolve(recipe, absent=True)
    except EnvironmentProblem:  # a library: the check of the device has said it
        model = recipe.model.model_copy(update={"quantization": "none"})
        return resolve(recipe.model_copy(update={"model": model}), absent=True)


def _numbers(shape: Shape) -> str:
    total = sum(weight.numel for weight in shape.weights)
    learn = sum(weight.numel for weight in shape.weights if weight.tuned)
    return f"{learn:,} of {total:,} weights learn"


def _weights(section: ModelSection) -> str:
    """Where the weights come from, without fetching or converting any. Raises EnvironmentProblem."""
    path = Path(section.name).expanduser()
    if section.name.endswith(".gguf") and path.is_file():
        return "converted already" if local_folder(section.name) else "to be converted once"
    if not path.is_dir():
        return "from the Hub"
    if _holds_weights(path):
        stored_tensors(path)  # reads every file's header
        return f"in {path}"
    if any(path.glob("pytorch_model*.bin")):
        return "to be converted once"
    local_safetensors(section.name, None)  # says what the folder lacks
    return f"in {path}"


def _holds_weights(folder: Path | None) -> bool:
    return folder is not None and any((folder / x).is_file() for x in (WEIGHTS, WEIGHTS_INDEX))


@contextmanager
def _named(name: str) -> Iterator[None]:
    """Say what a problem is about: a row's number says nothing without the set that it is in."""
    try:
        yield
    except ZoftError as error:
        raise type(error)(f"{name}: {error}") from error


def _examples(
    name: str, recipe: Resolved, tokenizer: PreTrainedTokenizerBase, shape: Shape | None
) -> tuple[Resolved, Encoded]:
    """The recipe with its format settled, and one set."""
    recipe, sets = prepare(recipe, tokenizer, names=(name,))
    found = sets[name]
    if shape is not None and shape.outline is not None:
        objective = objective_for(recipe.objective.name)
        require_fits(shape.outline, found.examples, objective, tokenizer)
    if name == "train" and recipe.tune.tail == "head":
        label_words(found.examples)
    return recipe, found


def _memory(recipe: Resolved, shape: Shape) -> str:
    try:
        limits = budgets(recipe)
    except (RuntimeError, AssertionError):  # torch, about a GPU that is not here
        return f"not looked at, {recipe.device} is not here"
    recipe, shape = with_exact_blocks(recipe, shape, limits[0])
    found = choose(recipe, shape, *limits).footprint
    assumed = "" if shape.known else ", with texts of data.max_length assumed"
    said = f"{gib(found.device)} at the peak{assumed}, {gib(limits[0])} may be used"
    return f"{said} (zoft plan says more)"


def _unprobed(recipe: Resolved, shape: Shape | None, known: bool, report: Report) -> str:
    """Why the weights are not read, and the first step not looked at; empty if they are."""
    if report.problems or shape is None or not known:
        return "there is a problem above"
    if not _holds_weights(local_folder(recipe.model.name)):
        return "the weights are fetched or converted when a run begins"
    try:
        place = choose(recipe, shape, *budgets(recipe))
    except (RuntimeError, AssertionError):
        return f"{recipe.device} is not here"
    size = sum(weight.numel for weight in shape.weights) * DTYPES[recipe.model.dtype].itemsize
    if size > PROBED_BYTES:
        return f"{gib(size)} of weights would be read; a run looks when it begins"
    if place.residency != "device" and recipe.tune.method == "full":
        return "streamed blocks that change would be copied; a run looks when it begins"
    return ""


def _probes(recipe: Resolved, data: Data) -> str:
    """Load the model and look at its first step, as a run does."""
    recipe = with_data(resolve(warm_start(recipe)), data)
    with stop_on_signals() as stop:
        files = base_files(recipe, silent)
        with dry_run(recipe, files, data, silent, stop.check) as trainer:
            news = ["as with weights really moved"]
            if trainer.engine.estimator.paired:
                news.append("both signs in one pass")
            if trainer.engine.view.masked:
                news.append("with a mask for padding")
            return ", ".join(news)


def _disk(recipe: Resolved, shape: Shape) -> str:
    """Room for the result and checkpoints, and for what is converted."""
    folder = Path(recipe.output_dir).expanduser()
    needed = footprint(recipe, shape).disk
    require_space(folder, needed)
    if recipe.model.name.endswith(".gguf") and local_folder(recipe.model.name) is None:
        converted = 4 * sum(weight.numel for weight in shape.weights if not weight.adapter)
        require_space(cache_folder(), converted)
    free = shutil.disk_usage(existing(folder)).free
    return f"{needed / 1e9:.2f} GB for the result and checkpoints, {free / 1e9:.2f} GB are free"


def _hub(recipe: Recipe) -> str:
    """What a push needs, as far as it can be asked without making a repository."""
    repo_id = recipe.hub.repo_id
    assert repo_id is not None
    base_of(recipe, {})
    with hub_client():
        require_login(HfApi(), repo_id, say=silent, check=no_check)
    return f"logged in with a token that may write; {repo_id} is asked for when a run begins"
