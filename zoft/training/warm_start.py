"""A run that begins where another ended: with its weights as the base, or with its adapter."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from safetensors.torch import load_file
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from zoft.errors import EnvironmentProblem, RecipeError
from zoft.inference.locate import hub_adapter, weights_of
from zoft.models.adapters import is_adapter, of_adapter
from zoft.models.load import load_adapters_tokenizer
from zoft.models.storage.adapter_files import adapters_below
from zoft.models.storage.safetensors import tensors_in
from zoft.recipe.schema import Recipe
from zoft.recipe.sections.tune import TuneSection
from zoft.runs.folder import RunFolder

METHODS = {"LORA": "lora", "IA3": "ia3", "PREFIX_TUNING": "prefix", "PROMPT_TUNING": "prompt"}


def warm_start(recipe: Recipe, start: Path | None = None) -> Recipe:
    """The recipe with what `model.name` and `tune.adapter` stand for: folders, or Hub ids of models.

    The adapter's rank, scale, modules and virtual tokens become the recipe's. `start` is the adapter
    that a resumed run began with, which may be gone from where it came from. Raises
    EnvironmentProblem for what is not there, RecipeError for what contradicts the adapter.
    """
    model, tune = recipe.model, recipe.tune
    if RunFolder(Path(model.name).expanduser()).exists:
        where = weights_of(model.name)
        if is_adapter(where):
            raise RecipeError(
                f"model.name: {model.name} tuned an adapter: name its base model, and write "
                f"tune.adapter={model.name}"
            )
        model = model.model_copy(update={"name": where})
    if tune.adapter is not None:
        tune = _as_in(_adapter_of(tune.adapter, start), tune)
    return recipe.model_copy(update={"model": model, "tune": tune})


def tokenizer_for(
    recipe: Recipe, files: Path | None = None, start: Path | None = None
) -> PreTrainedTokenizerBase:
    """The tokenizer that lies with the adapter to be tuned on (`start` as for `warm_start`), else the
    one of the base, with its `files` (None: wherever it is, without its weights). Raises
    EnvironmentProblem."""
    name = recipe.tune.adapter
    folder = None if name is None else _adapter_of(name, start)
    return load_adapters_tokenizer(folder, files, recipe.model)


def _adapter_of(name: str, start: Path | None) -> Path:
    return start if start and is_adapter(start) else adapter_folder(name)


def require_same_adapter(recipe: Recipe, previous: Recipe, start: Path) -> None:
    """Raise EnvironmentProblem if a resumed run's recipe names another adapter than it began with, by
    its numbers; `previous` and `start` are what it began with."""
    name = recipe.tune.adapter
    if name is None or name == previous.tune.adapter:
        return  # the same place, whatever became of it since
    theirs, ours = _numbers(adapter_folder(name)), _numbers(start)
    for key, tensor in ours.items():
        if key not in theirs or not theirs[key].to(tensor.dtype).equal(tensor):
            raise EnvironmentProblem(
                f"tune.adapter: {name} is not the adapter that the run began with ({key} differs)"
            )


def _numbers(folder: Path) -> dict[str, Tensor]:
    return {
        key: tensor
        for file in sorted(folder.glob("adapter_model*.safetensors"))
        for key, tensor in load_file(file).items()
        if of_adapter(key)
    }


def adapter_folder(name: str) -> Path:
    """Where the files of `tune.adapter` lie: a run, a checkpoint, a folder, or a repository's copy.

    Raises EnvironmentProblem if there is no adapter.
    """
    where: str | None = weights_of(name)
    if not is_adapter(Path(where or "").expanduser()):
        local = Path(name).expanduser().exists()
        where = None if local else hub_adapter(name)
        if where is None:
            kind = (
                f"holds no adapter{adapters_below(Path(name).expanduser())}"
                if local
                else "is no adapter here, nor can one be had from the Hub"
            )
            raise EnvironmentProblem(f"tune.adapter: {name} {kind}")
    assert where is not None
    return Path(where).expanduser()


def _as_in(folder: Path, tune: TuneSection) -> TuneSection:
    """The settings of an adapter's config in place of defaults; a value that was set must agree."""
    try:
        config: dict[str, Any] = json.loads(
            (folder / "adapter_config.json").read_text(encoding="utf-8")
        )
    except (OSError, ValueError) as error:
        raise EnvironmentProblem(
            f"tune.adapter: cannot read {folder}/adapter_config.json"
        ) from error
    method = METHODS.get(config.get("peft_type", ""), str(config.get("peft_type")))
    if method != tune.method:
        raise RecipeError(f"tune.adapter: {tune.adapter} is of method {method}, not {tune.method}")
    found: dict[str, Any] = {}
    if method == "lora":
        found = {"r": config["r"], "alpha": float(config["lora_alpha"])}
    if method in ("prefix", "prompt"):
        found = {"virtual_tokens": config["num_virtual_tokens"]}
    elif isinstance(config.get("target_modules"), list):
        found["target_modules"] = sorted(config["target_modules"])
    else:  # an expression, or parameters by name: the files say what it found
        found["target_modules"] = _adapted_modules(folder)
    for key, value in found.items():
        said = getattr(tune, key)
        same = sorted(said) == value if isinstance(said, list) else said in (value, "auto")
        if key in tune.model_fields_set and not same:
            raise RecipeError(f"tune.{key}: {said}, but {tune.adapter} has {value}: leave it out")
    return tune.model_copy(update=found)


def _adapted_modules(folder: Path) -> list[str] | str:
    """Full names of the modules whose adapters lie in the files; auto if these do not say."""
    names = (
        re.fullmatch(r"base_model\.model\.(.+?)\.(?:lora_|ia3_).*", name)
        for file in sorted(folder.glob("adapter_model*.safetensors"))
        for name in tensors_in(file)
    )
    return sorted({found[1] for found in names if found}) or "auto"
