"""A recipe's model on torch's meta device, an outline: all shapes and types, from the config alone."""

from __future__ import annotations

import re
from pathlib import Path

import torch
from peft import PeftModel
from torch import nn
from transformers import AutoConfig, PreTrainedConfig, PreTrainedModel
from transformers.core_model_loading import build_glob_alternation

from zoft.errors import EnvironmentProblem, first_line
from zoft.models.adapters import attach_adapter, of_adapter
from zoft.models.empty_weights import model_on_meta
from zoft.models.storage.faults import config_fault, explained
from zoft.models.storage.fetch import local_folder
from zoft.models.storage.save import as_in_checkpoint
from zoft.models.storage.tracing import trace
from zoft.recipe.schema import ModelSection
from zoft.recipe.sections.tune import TuneSection
from zoft.system import demo
from zoft.system.silence import quiet


def load_config(section: ModelSection) -> PreTrainedConfig:
    """The model's config: of a folder (which may hold nothing else), a .gguf file, or from the Hub.

    Raises EnvironmentProblem.
    """
    path, folder = Path(section.name).expanduser(), local_folder(section.name)
    name, file = str(folder or section.name), {}
    if folder is None and not path.is_file() and section.name.startswith((".", "/", "~")):
        hint = demo.hint(section.name)
        raise EnvironmentProblem(f"model.name: there is no {section.name}{hint}")
    if folder is None and path.suffix == ".gguf":  # not converted yet
        name, file = str(path.parent), {"gguf_file": path.name}
    try:
        with quiet():
            config: PreTrainedConfig = AutoConfig.from_pretrained(
                name,
                revision=section.revision,
                trust_remote_code=section.trust_remote_code,
                **file,
            )
    except Exception as error:  # transformers and a model's own code raise nearly every class
        raise EnvironmentProblem(
            f"cannot read the config of {section.name}: {explained(error, name)}"
        ) from error
    return config


def build_outline(
    config: PreTrainedConfig,
    tune: TuneSection,
    *,
    stored: torch.dtype,
    adapter: torch.dtype = torch.float32,
    trust_remote_code: bool = False,
) -> nn.Module:
    """The model on torch's meta device, its weights in `stored`, with the adapter if there is one.

    Takes no memory to speak of and some tenths of a second. Raises EnvironmentProblem for a config of
    no decoder, RecipeError for target modules that it does not have.
    """
    try:
        with quiet():
            model = model_on_meta(config, stored, trust_remote_code)
    except Exception as error:  # the config may fit no decoder, or contradict itself: any class
        reason = config_fault(config.to_dict()) or first_line(error)
        raise EnvironmentProblem(f"cannot build the model: {reason}") from error
    outline: nn.Module = model.eval().requires_grad_(False)  # type: ignore[no-untyped-call]
    model.config.use_cache = False
    if tune.method != "full":
        with torch.device("meta"):
            outline = attach_adapter(model, tune, 0, adapter)
    return outline


def kept_in_float32(model: nn.Module, compute_dtype: torch.dtype) -> set[nn.Parameter]:
    """The parameters that transformers keeps in float32 in a model of `compute_dtype`, as their modules
    expect (a router's weights, say)."""
    base = model.get_base_model() if isinstance(model, PeftModel) else model
    plan = base._get_dtype_plan(compute_dtype) if isinstance(base, PreTrainedModel) else {}
    if not plan:
        return set()
    matches, _, _ = build_glob_alternation(list(plan))
    # By the names without an adapter: peft's `base_layer` matches HY-V4's `base`.
    names = {name.replace(".base_layer", ""): p for name, p in base.named_parameters()}
    return {p for name, p in names.items() if not of_adapter(name) and matches.search(name)}


def computed_buffers(model: nn.Module, compute_dtype: torch.dtype) -> list[tuple[nn.Module, str]]:
    """(module, name) of the floating buffers that a model loaded in `compute_dtype` has in that type,
    and this one in another: what is computed with them would not fit (decays, a mask of ones)."""
    base = model.get_base_model() if isinstance(model, PeftModel) else model
    there = {
        name: (base.get_submodule(name.rpartition(".")[0]), buffer)
        for name, buffer in base.named_buffers()
        if buffer.is_floating_point() and buffer.dtype != compute_dtype
    }
    if not there or not isinstance(base, PreTrainedModel):
        return []
    with quiet():
        like = dict(build_like(base, compute_dtype).named_buffers())
    return [
        (module, name.rpartition(".")[2])
        for name, (module, _) in there.items()
        if name in like and like[name].dtype == compute_dtype
    ]


def build_like(model: PreTrainedModel, dtype: torch.dtype) -> PreTrainedModel:
    """The outline of a model of the same class and config, in another type."""
    with torch.device("meta"):
        outline: PreTrainedModel = type(model)._from_config(model.config, dtype=dtype)  # type: ignore[no-untyped-call]
    return outline


def why_not_streamed(config: PreTrainedConfig, trust_remote_code: bool = False) -> str:
    """What keeps a model's blocks from being read straight from its files; empty if nothing does.

    Raises whatever transformers raises for a config of no decoder.
    """
    if getattr(config, "quantization_config", None) is not None:
        return "its checkpoint is quantised"
    with quiet():
        model = model_on_meta(config, torch.float32, trust_remote_code)
    one_block = {re.sub(r"\d+", "*", name): name for name in model.state_dict()}
    traced = {
        name: trace(name, tensor.dtype, tensor.shape)
        for name, tensor in model.state_dict().items()
        if name in one_block.values()
    }
    if as_in_checkpoint(model, traced) is None:
        return "its weights are computed as they are loaded"
    return ""
