"""A recipe's model on torch's meta device, an outline: all shapes and types, from the config alone."""

from __future__ import annotations

import re
from pathlib import Path

import torch
from torch import nn
from transformers import AutoConfig, PreTrainedConfig

from zoft.errors import EnvironmentProblem, first_line
from zoft.models.adapters import attach_adapter
from zoft.models.empty_weights import model_on_meta
from zoft.models.storage.fetch import local_folder
from zoft.models.storage.save import as_in_checkpoint
from zoft.models.storage.tracing import trace
from zoft.recipe.schema import ModelSection
from zoft.recipe.sections.tune import TuneSection
from zoft.system.silence import quiet


def load_config(section: ModelSection) -> PreTrainedConfig:
    """The model's config: of a folder (which may hold nothing else), a .gguf file, or from the Hub.

    Raises EnvironmentProblem.
    """
    path, folder = Path(section.name).expanduser(), local_folder(section.name)
    name, file = str(folder or section.name), {}
    if folder is None and not path.is_file() and section.name.startswith((".", "/", "~")):
        raise EnvironmentProblem(f"model.name: there is no {section.name}")
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
            f"cannot read the config of {section.name}: {first_line(error)}"
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
        raise EnvironmentProblem(f"cannot build the model: {first_line(error)}") from error
    outline: nn.Module = model.eval().requires_grad_(False)  # type: ignore[no-untyped-call]
    model.config.use_cache = False
    if tune.method != "full":
        with torch.device("meta"):
            outline = attach_adapter(model, tune, 0, adapter)
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
