"""Adapters through peft: attached from a recipe, or loaded from a folder."""

from __future__ import annotations

import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import MethodType
from typing import Any

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
from peft.utils.other import AuxiliaryTrainingWrapper
from torch import Tensor
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from zoft.errors import EnvironmentProblem, RecipeError, first_line, lacks_memory
from zoft.models.storage.adapter_files import (
    CONFIG,
    names_in,
    read_config,
    require_known,
    some,
    unknown_names,
)
from zoft.models.storage.safetensors import tensors_in
from zoft.models.targets import feedforward, find_targets
from zoft.recipe.sections.tune import TuneSection
from zoft.system.silence import quiet

_TABLES = "zoft_brings_tables"  # an attribute of the loaded model
_MISSING = "Found missing adapter keys while loading the checkpoint:"
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
    require_known(folder)
    names = names_in(folder)
    try:
        with quiet(), _peft_behind_transformers() as said:
            tables = _make_room(model, Path(folder))
            adapted = PeftModel.from_pretrained(model, str(folder))
    except Exception as error:  # peft, safetensors and torch each have their own for a misfit
        if lacks_memory(error):
            raise
        problem = f"cannot load the adapter {folder}: {_reason(error)}"
        raise EnvironmentProblem(problem) from error
    _require_exact(adapted, folder, names, "".join(said))
    # What peft keeps a copy of (modules_to_save, say) it saves on its own.
    kept = isinstance(model.get_input_embeddings(), AuxiliaryTrainingWrapper)
    setattr(adapted, _TABLES, tables and not kept)
    return _still(adapted, dtype)


def _require_exact(adapted: PeftModel, folder: Path | str, names: list[str], said: str) -> None:
    """peft leaves what is missing at random, and drops what it has no place for."""
    lacking = re.findall(r"'(.+?)'", said.partition(_MISSING)[2])
    unknown = unknown_names(adapted, names)
    problems = [
        *([f"lacks weights that its {CONFIG} asks for: {some(lacking, 1)}"] if lacking else []),
        *(
            [f"holds weights that the model has no place for: {some(unknown, 1)}"]
            if unknown
            else []
        ),
    ]
    if problems:
        raise EnvironmentProblem(
            f"the adapter {folder} {' and '.join(problems)}; was it made for another base?"
        )
    for name, parameter in adapted.named_parameters():
        if of_adapter(name) and not parameter.isfinite().all():
            raise EnvironmentProblem(
                f"the adapter {folder} holds numbers that are not finite, in {name}"
            )


def brings_tables(model: PeftModel) -> bool:
    """Whether the adapter was loaded with tables of words of its own, which it is to keep."""
    return bool(getattr(model, _TABLES, False))


def _make_room(model: PreTrainedModel, folder: Path) -> bool:
    """Resize the vocabulary to the table of words that lies in an adapter's files, if one does, and
    say whether it does. The loaded table then replaces the base's."""
    table: Any = model.get_input_embeddings()
    name = next((name for name, module in model.named_modules() if module is table), None)
    for file in folder.glob("adapter_model*.safetensors"):
        found = tensors_in(file)
        names = (f"base_model.model.{name}.{end}" for end in ("weight", "base_layer.weight"))
        if stored := next((found[key] for key in names if key in found), None):
            if stored.shape[0] != table.weight.shape[0]:
                model.resize_token_embeddings(stored.shape[0], mean_resizing=False)
            return True
    return False


def is_adapter(folder: Path | str) -> bool:
    """Whether the folder holds an adapter rather than a model."""
    return (Path(folder) / CONFIG).is_file()


def base_of(folder: Path | str) -> tuple[str, str | None]:
    """(name, revision) of the model that the adapter was trained on. Raises EnvironmentProblem."""
    config = read_config(folder)
    name, revision = config.get("base_model_name_or_path"), config.get("revision")
    if not name or not isinstance(name, str) or not isinstance(revision, str | None):
        raise EnvironmentProblem(
            f"{Path(folder) / CONFIG} does not name its base model; write its folder or Hub id "
            "there, as base_model_name_or_path"
        )
    return name, revision


def _reason(error: Exception) -> str:
    """What peft says in one line; a module that it cannot wrap it prints whole, over many."""
    module = re.match(r"Target module (\w+)\(.* is not supported", str(error), re.DOTALL)
    if module:
        return f"peft cannot wrap a module of class {module[1]}"
    return _misfit(str(error)) or first_line(error)


def _misfit(text: str) -> str | None:
    """The first tensor whose shape is not the model's, and whether it is the vocabulary's."""
    found = re.search(
        r"size mismatch for (\S+): copying a param with shape torch\.Size\(\[(.*?)\]\) from checkpoint, "
        r"the shape in current model is torch\.Size\(\[(.*?)\]\)",
        text,
    )
    if found is None:
        return None
    name, stored, there = found.groups()
    return f"its {name} has shape [{stored}], the model's has [{there}]"


@contextmanager
def _peft_behind_transformers() -> Iterator[list[str]]:
    """Keep back what peft warns of, which is for authors of code; yield it as it comes."""
    said: list[str] = []
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        warnings.showwarning = lambda message, *_, **__: said.append(str(message))
        yield said


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
