"""`zoft merge`: an adapter added to its base, and shown to compute what both computed together."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import torch
from peft import PeftConfig, PeftModel
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import nn
from transformers import PreTrainedModel

from zoft.errors import EnvironmentProblem, OutOfMemory, RecipeError, ZoftError, first_line
from zoft.inference.locate import weights_of
from zoft.models.adapters import base_of, is_adapter, load_adapter
from zoft.models.load import load_adapters_tokenizer, load_model
from zoft.models.storage.adapter_files import adapters_below
from zoft.models.storage.fetch import local_safetensors
from zoft.models.storage.safetensors import stored_tensors
from zoft.recipe.schema import ModelSection, Recipe
from zoft.runs.checkpoint import require_space, write_model
from zoft.runs.folder import run_of
from zoft.sharing.logits import (
    BOUND,
    Merged,
    apart,
    in_float64,
    largest,
    logits,
    prompts_for,
    require_close,
)
from zoft.system.atomic_io import delete, staged
from zoft.system.device import DTYPES
from zoft.system.host_memory import free_host_bytes, gib
from zoft.system.signals import stop_on_signals


def merge(
    target: str, out: str, dtype: Literal["float32", "bfloat16", "float16"] = "float32"
) -> float:
    """Write base + adapter as one model to the new folder `out`; how far the logits are apart.

    The model is written in float32, read back and compared with base and adapter; only then it is
    rounded to `dtype`. Raises ZoftError, and leaves no `out`, if they differ by more than BOUND, in
    float64 as well: a deep model's passes round by more than that in float32.
    """
    with stop_on_signals() as stop, new_place(Path(out).expanduser()) as partial:
        merged = merged_model(target, stop.check, also_on_disk=partial)
        checked = partial.with_name(f"{partial.name}-float32")
        with _folder(checked):
            write_model(checked, merged.model, merged.tokenizer)
            stop.check()
            model = _read_back(checked)
            difference = apart(model, merged)
            where = f"on {len(merged.prompts)} prompts of {merged.prompts_of}"
            print(
                f"logits of the files and of base + adapter, {where}:\n"
                f"at most {difference:.2g} apart in float32 (allowed: {BOUND:g})"
            )
            closest = difference
            if difference > BOUND and merged.exact:
                closest = largest(in_float64(model, merged.prompts), merged.exact)
                print(f"and {closest:.2g} in float64: the rest is rounding of the passes")
            require_close(closest, target)
            if dtype == "float32":
                checked.rename(partial)
            else:
                partial.mkdir()
                rounded_model: PreTrainedModel = model.to(DTYPES[dtype])  # type: ignore[arg-type]
                write_model(partial, rounded_model, merged.tokenizer)
                rounded = apart(_read_back(partial), merged)
                print(f"rounding to {dtype} moves them by up to {rounded:.2g}")
            stop.check()
    print(f"files          {out}")
    return difference


def merged_model(
    target: str, check: Callable[[], None], also_on_disk: Path | None = None
) -> Merged:
    """The base of the adapter that `target` names, in float32, with the adapter added to it.

    `check` stops the work by raising. With `also_on_disk` its disk must have room for the result.
    Raises ZoftError.
    """
    adapter = _adapter_of(target)
    recipe = recipe_of(Path(target).expanduser())
    name, revision = base_of(adapter)
    section = ModelSection(name=name, revision=revision)
    if recipe is not None:
        trusted = {"trust_remote_code": recipe.model.trust_remote_code}
        section = section.model_copy(update=trusted)
        if recipe.model.quantization != "none":
            print(
                f"note: the adapter was tuned on {recipe.model.quantization} codes; it is added to "
                "the base's own\nweights, which differ from those by the codes' rounding"
            )
    folder = local_safetensors(name, revision, trust_remote_code=section.trust_remote_code)
    size = require_memory(folder)
    if also_on_disk is not None:
        require_space(also_on_disk, size)
    tokenizer = load_adapters_tokenizer(adapter, folder, section)
    prompts, prompts_of = prompts_for(recipe, tokenizer)
    check()
    base = load_model(folder, section, dtype=torch.float32, device="cpu").model
    if getattr(base.config, "quantization_config", None) is not None:
        raise EnvironmentProblem(
            f"{name} holds codes instead of weights, which cannot take an adapter without rounding "
            "again; merge onto the model that they were made from"
        )
    adapted = load_adapter(base, adapter)
    expected = logits(adapted, prompts)
    check()
    exact = in_float64(adapted, prompts) if free_host_bytes() > 2 * size else None
    check()
    return Merged(_added(adapted, adapter), tokenizer, prompts, prompts_of, expected, exact)


def recipe_of(path: Path) -> Recipe | None:
    """The recipe of the run that `path` is, or is a folder of; None if there is none."""
    try:
        return run_of(path)[0].previous()
    except ZoftError:
        return None


def require_memory(folder: Path) -> int:
    """Bytes of the model in float32. Raises OutOfMemory if they are not free."""
    size = sum(4 * math.prod(stored.shape) for stored in stored_tensors(folder).values())
    if size > free_host_bytes():
        raise OutOfMemory(
            f"the model takes {gib(size)} in float32, {gib(free_host_bytes())} are free here"
        )
    return size


@contextmanager
def new_place(place: Path) -> Iterator[Path]:
    """Yield a path to write to, which becomes `place` if nothing fails.

    Raises RecipeError if `place` is there already, OSError if it cannot be written.
    """
    if place.exists() or place.is_symlink():
        raise RecipeError(f"{place} exists; name one that does not")
    place.parent.mkdir(parents=True, exist_ok=True)
    with staged(place) as partial:
        yield partial


@contextmanager
def _folder(place: Path) -> Iterator[None]:
    delete(place)
    place.mkdir()
    try:
        yield
    finally:
        delete(place)


def _adapter_of(target: str) -> str:
    """The folder of the adapter. Raises ZoftError for what holds none, or one without weights."""
    if not Path(target).expanduser().is_dir():
        raise EnvironmentProblem(f"there is no run, checkpoint or adapter folder {target}")
    where = weights_of(target)
    if not is_adapter(where):
        if not (Path(where) / "config.json").is_file():
            raise RecipeError(
                f"nothing to merge: {where} holds no adapter{adapters_below(Path(where))}"
            )
        raise RecipeError(f"nothing to merge: {where} is already a whole model")
    try:
        config = PeftConfig.from_pretrained(where)
    except (OSError, ValueError, KeyError, TypeError) as error:  # no JSON, no type, no such keys
        raise EnvironmentProblem(f"cannot read the adapter {where}: {first_line(error)}") from error
    if config.is_prompt_learning:
        raise RecipeError(
            f"{where} cannot be merged: {str(config.peft_type.value).lower()} stands before the "
            "prompt and is no change of the weights; load it with peft"
        )
    return where


def _added(adapted: PeftModel, adapter: str) -> PreTrainedModel:
    """The base with the adapter's changes in its own weights, in place."""
    add: Any = getattr(adapted.base_model, "merge_and_unload", None)
    if add is None:
        kind = str(adapted.peft_config["default"].peft_type.value).lower()
        raise RecipeError(f"{adapter} cannot be merged: peft has no way to for {kind} adapters")
    untied = _untie(adapted)
    try:
        with warnings.catch_warnings(action="ignore"):  # what they say was seen to above
            model: PreTrainedModel = add(safe_merge=True)
    except (ValueError, NotImplementedError) as error:  # not finite, or a layer that cannot
        raise EnvironmentProblem(f"{adapter} cannot be merged: {first_line(error)}") from error
    except RuntimeError as error:
        if "base layer has no bias" not in str(error):
            raise
        why = "it has biases (lora_bias), and the base's layers have none to add them to"
        raise RecipeError(f"{adapter} cannot be merged: {why}") from error
    if untied:
        for config in (model.config, model.config.get_text_config()):
            config.tie_word_embeddings = False
    return model


def _untie(adapted: PeftModel) -> bool:
    """Give each place of a weight that an adapter changes a weight of its own: what is added to the
    word table would move the head that shares it, too. Returns whether there were such."""
    changed = {m.get_base_layer() for m in adapted.modules() if isinstance(m, BaseTunerLayer)}
    places: dict[nn.Parameter, list[tuple[nn.Module, str]]] = {}
    for module in adapted.modules():
        for name, parameter in module._parameters.items():
            if parameter is not None:
                places.setdefault(parameter, []).append((module, name))
    untied = False
    for parameter, owners in places.items():
        if len(owners) > 1 and any(module in changed for module, _ in owners):
            untied = True
            for module, name in owners[1:]:
                copied = nn.Parameter(parameter.detach().clone(), requires_grad=False)
                module.register_parameter(name, copied)
    return untied


def _read_back(folder: Path) -> PreTrainedModel:
    section = ModelSection(name=str(folder))
    return load_model(folder, section, dtype=torch.float32, device="cpu").model
