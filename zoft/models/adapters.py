"""Adapters through peft: attached from a recipe, or loaded from a folder."""

from __future__ import annotations

import json
import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import MethodType

import torch
from peft import (
    IA3Config,
    LoraConfig,
    PeftConfig,
    PeftModel,
    PeftType,
    PrefixTuningConfig,
    PromptTuningConfig,
    PromptTuningInit,
    get_peft_model,
)
from torch import Tensor
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from zoft.errors import EnvironmentProblem, RecipeError, first_line, lacks_memory
from zoft.models.targets import feedforward, find_targets
from zoft.recipe.sections.tune import TuneSection

_CONFIG = "adapter_config.json"
_PARTS = ("lora_", "ia3_", "prompt_encoder")  # of the names that peft gives its parameters


def attach_adapter(
    model: PreTrainedModel, tune: TuneSection, seed: int, dtype: torch.dtype = torch.float32
) -> PeftModel:
    """A new adapter of kind `tune.method`, made from `seed` alone.

    LoRA (Hu et al., arXiv 2106.09685; A by He's rule, B zero) and IA3 (Liu et al., arXiv 2205.05638;
    ones) compute what the model did before. A prompt (Lester et al., arXiv 2104.08691) begins with the
    embeddings of random tokens, a prefix (Li and Liang, arXiv 2101.00190) with noise:
    `prefix.begin_with_activations` is to follow.
    Raises RecipeError for modules or blocks that the model does not have, for a model that cannot have
    such an adapter, and if `auto` finds no modules.
    """
    config = _config(model, tune)
    config.revision = getattr(model.config, "_commit_hash", None)
    with torch.random.fork_rng(devices=[]), _peft_behind_transformers():
        # peft draws on the CPU, whatever the device. torch.manual_seed would reseed CUDA as well.
        torch.default_generator.manual_seed(seed)
        try:
            adapted = get_peft_model(model, config)
        except (ValueError, AttributeError, KeyError) as error:  # a config without heads, say
            raise RecipeError(
                f"tune.method: {type(model).__name__} takes no {tune.method}: {_reason(error)}"
            ) from error
    assert isinstance(adapted, PeftModel)
    return _still(adapted, dtype)


def _config(model: PreTrainedModel, tune: TuneSection) -> PeftConfig:
    """Make peft's config of the adapter that a recipe asks for."""
    match tune.method:
        case "lora":
            targets = find_targets(model, tune)
            return LoraConfig(
                task_type="CAUSAL_LM",
                r=tune.r,
                lora_alpha=tune.alpha,
                lora_dropout=0.0,
                target_modules=targets.words(model),
                fan_in_fan_out=any(isinstance(m, Conv1D) for m in targets.modules.values()),
            )
        case "ia3":
            targets = find_targets(model, tune)
            words = targets.words(model)
            return IA3Config(
                task_type="CAUSAL_LM",
                target_modules=words,
                feedforward_modules=feedforward(model, words),
                fan_in_fan_out=any(isinstance(m, Conv1D) for m in targets.modules.values()),
            )
        case "prefix":
            return PrefixTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=tune.virtual_tokens)
        case "prompt":
            return PromptTuningConfig(
                task_type="CAUSAL_LM",
                num_virtual_tokens=tune.virtual_tokens,
                prompt_tuning_init=PromptTuningInit.SAMPLE_VOCAB,
            )
        case "full":
            raise AssertionError("full tuning has no adapter")


def of_adapter(name: str) -> bool:
    """Whether the parameter of that name belongs to an adapter."""
    return any(part.startswith(_PARTS) for part in name.split("."))


def virtual_tokens(model: object) -> int:
    """Positions that an adapter of `model` takes in front of every example."""
    config = model.active_peft_config if isinstance(model, PeftModel) else None
    return int(getattr(config, "num_virtual_tokens", None) or 0)


def load_adapter(
    model: PreTrainedModel, folder: Path | str, dtype: torch.dtype = torch.float32
) -> PeftModel:
    """The base model with the adapter of `folder`. Raises EnvironmentProblem if they do not fit."""
    try:
        with _peft_behind_transformers():
            adapted = PeftModel.from_pretrained(model, str(folder))
    except Exception as error:  # peft, safetensors and torch each have their own for a misfit
        if lacks_memory(error):
            raise
        problem = f"cannot load the adapter {folder}: {_reason(error)}"
        raise EnvironmentProblem(problem) from error
    return _still(adapted, dtype)


def is_adapter(folder: Path | str) -> bool:
    """Whether the folder holds an adapter rather than a model."""
    return (Path(folder) / _CONFIG).is_file()


def base_of(folder: Path | str) -> tuple[str, str | None]:
    """(name, revision) of the model that the adapter was trained on. Raises EnvironmentProblem."""
    file = Path(folder) / _CONFIG
    try:
        config = json.loads(file.read_text())
        name, revision = config["base_model_name_or_path"], config.get("revision")
    except (OSError, ValueError, KeyError) as error:
        raise EnvironmentProblem(f"cannot read {file}: {first_line(error)}") from error
    if not name:
        raise EnvironmentProblem(f"{file} does not name its base model")
    return name, revision


def _reason(error: Exception) -> str:
    """What peft says in one line; a module that it cannot wrap it prints whole, over many."""
    module = re.match(r"Target module (\w+)\(.* is not supported", str(error), re.DOTALL)
    return f"peft cannot wrap a module of class {module[1]}" if module else first_line(error)


@contextmanager
def _peft_behind_transformers() -> Iterator[None]:
    """Keep back warnings for peft's authors: 0.21 reads a property that transformers 5.23 renamed, and
    gives experts (in all-linear of some mixtures) a pattern of ranks that it does not find again."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "The following (rank|alpha)_pattern keys", RuntimeWarning)
        warnings.filterwarnings("ignore", "`is_gradient_checkpointing`", FutureWarning)
        yield


def _still(adapted: PeftModel, dtype: torch.dtype) -> PeftModel:
    """Eval mode, no gradients, the adapter's weights in `dtype` and in memory of their own."""
    adapted.eval().requires_grad_(False)
    config = adapted.active_peft_config
    if not getattr(config, "prefix_projection", False):
        # Else peft reads a prefix past its module, where nothing can stand in for it.
        config.inference_mode = False
    if config.peft_type == PeftType.PROMPT_TUNING:
        adapted.get_prompt = MethodType(_prompt_of_every_row, adapted)
    for name, parameter in adapted.named_parameters():
        if of_adapter(name):
            parameter.data = parameter.data.to(dtype, copy=True).contiguous()
    return adapted


def _prompt_of_every_row(adapted: PeftModel, batch_size: int, **_: object) -> Tensor:
    """peft looks one prompt up and repeats it, so that rows could not have probes of their own."""
    tokens = adapted.prompt_tokens[adapted.active_adapter].to(adapted.device)
    found: Tensor = adapted.prompt_encoder[adapted.active_adapter](tokens.expand(batch_size, -1))
    return found
