"""LoRA through peft: attached from a recipe, or loaded from a folder."""

from __future__ import annotations

import json
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from difflib import get_close_matches
from pathlib import Path

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from peft.utils import TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING
from torch import nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from zoft.errors import EnvironmentProblem, RecipeError, lacks_memory
from zoft.models.quiet import first_line
from zoft.recipe.schema import TuneSection

_CONFIG = "adapter_config.json"


def attach_lora(
    model: PreTrainedModel, tune: TuneSection, seed: int, dtype: torch.dtype = torch.float32
) -> PeftModel:
    """A new adapter (Hu et al., arXiv 2106.09685): A by He's rule from `seed` alone, B zero.

    The model computes what it did before. Raises RecipeError for target modules that it does not
    have, EnvironmentProblem if `auto` finds none.
    """
    linear = _linear_modules(model)
    targets = _targets(model, tune, linear)
    chosen = [m for name, m in linear.items() if any(_ends_with(name, t) for t in targets)]
    config = LoraConfig(
        task_type="CAUSAL_LM",
        r=tune.r,
        lora_alpha=tune.alpha,
        lora_dropout=0.0,
        target_modules=targets,
        fan_in_fan_out=any(isinstance(module, Conv1D) for module in chosen),
        revision=getattr(model.config, "_commit_hash", None),
    )
    with torch.random.fork_rng(devices=[]), _peft_behind_transformers():
        # peft draws on the CPU, whatever the device. torch.manual_seed would reseed CUDA as well.
        torch.default_generator.manual_seed(seed)
        adapted = get_peft_model(model, config)
    return _still(adapted, dtype)


def load_adapter(
    model: PreTrainedModel, folder: Path | str, dtype: torch.dtype = torch.float32
) -> PeftModel:
    """The base model with the adapter of `folder`. Raises EnvironmentProblem if they do not fit."""
    try:
        with _peft_behind_transformers():
            adapted = PeftModel.from_pretrained(model, str(folder))
    except Exception as error:
        if lacks_memory(error):
            raise
        problem = f"cannot load the adapter {folder}: {first_line(error)}"
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


@contextmanager
def _peft_behind_transformers() -> Iterator[None]:
    """peft 0.21 reads a property that transformers 5.23 renamed; the warning is for its authors."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "`is_gradient_checkpointing`", FutureWarning)
        yield


def _linear_modules(model: nn.Module) -> dict[str, nn.Module]:
    return {n: m for n, m in model.named_modules() if isinstance(m, nn.Linear | Conv1D)}


def _ends_with(name: str, target: str) -> bool:
    return name == target or name.endswith(f".{target}")


def _targets(model: PreTrainedModel, tune: TuneSection, linear: dict[str, nn.Module]) -> list[str]:
    """The name endings to adapt; each of them matches a linear module."""
    endings = sorted({name.rpartition(".")[2] for name in linear})
    if tune.target_modules == "auto":
        family = TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING.get(model.config.model_type)
        for choice in (family, ["q_proj", "v_proj"]):
            if isinstance(choice, list) and set(choice) <= set(endings):
                return choice
        raise EnvironmentProblem(
            f"no default LoRA modules for {model.config.model_type} models; "
            f"set tune.target_modules to some of: {', '.join(endings)}"
        )
    unknown = [t for t in tune.target_modules if not any(_ends_with(name, t) for name in linear)]
    if unknown:
        raise RecipeError(
            "\n".join(
                f"tune.target_modules: {target!r} is no linear module of the model; "
                f"there are: {', '.join(get_close_matches(target, endings) or endings)}"
                for target in unknown
            )
        )
    return list(tune.target_modules)


def _still(adapted: PeftModel, dtype: torch.dtype) -> PeftModel:
    """Eval mode, no gradients, the adapter's weights in `dtype` and in memory of their own."""
    adapted.eval().requires_grad_(False)
    for name, parameter in adapted.named_parameters():
        if "lora_" in name:
            parameter.data = parameter.data.to(dtype, copy=True).contiguous()
    return adapted
