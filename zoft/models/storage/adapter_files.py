"""An adapter's files, looked at before peft reads them: it passes over what it does not know."""

from __future__ import annotations

import re
import warnings
from collections.abc import Iterable
from dataclasses import fields
from pathlib import Path
from typing import Any

import peft
import torch
from peft import PeftModel, get_peft_model_state_dict
from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING

from zoft.errors import EnvironmentProblem
from zoft.models.storage.faults import read_object
from zoft.models.storage.safetensors import IS_POINTER, POINTER, tensors_in

CONFIG = "adapter_config.json"
_SAFETENSORS, _BIN = "adapter_model.safetensors", "adapter_model.bin"


def read_config(folder: Path | str) -> dict[str, Any]:
    """The config of an adapter. Raises EnvironmentProblem."""
    file = Path(folder) / CONFIG
    config, fault = read_object(file)
    if fault:
        raise EnvironmentProblem(f"cannot read {file}: {fault}")
    return config


def require_known(folder: Path | str) -> None:
    """Raise EnvironmentProblem for a config that peft cannot read, or would read in part.

    Keys of a newer peft that are off (null, false, 0, empty) change nothing.
    """
    file, config = Path(folder) / CONFIG, read_config(folder)
    kind = PEFT_TYPE_TO_CONFIG_MAPPING.get(config.get("peft_type"))
    if kind is None:
        raise EnvironmentProblem(
            f"{file}: peft {peft.__version__} knows no peft_type {config.get('peft_type')!r}"
        )
    known = {field.name for field in fields(kind)}
    if unknown := [key for key, value in config.items() if value and key not in known]:
        raise EnvironmentProblem(
            f"{file} sets {', '.join(unknown)}, which peft {peft.__version__} does not know and would "
            "pass over: take a newer peft, or null if it changes nothing"
        )
    for key in ("r", "lora_alpha"):
        value = config.get(key, 1)
        if not isinstance(value, int | float):
            raise EnvironmentProblem(f"{file}: {key} is {value!r}, not a number")
        if value == 0:
            raise EnvironmentProblem(f"{file}: {key} is 0, so the adapter changes nothing")


def names_in(folder: Path | str) -> list[str]:
    """The names of an adapter's tensors. Raises EnvironmentProblem for files that hold none."""
    file = Path(folder) / _SAFETENSORS
    if file.is_file():
        return list(tensors_in(file))
    file = Path(folder) / _BIN
    if not file.is_file():
        raise EnvironmentProblem(f"{folder} holds neither {_SAFETENSORS} nor {_BIN}")
    with file.open("rb") as stream:
        if stream.read(len(POINTER)) == POINTER:
            raise EnvironmentProblem(f"cannot read {file}: {IS_POINTER}")
    try:
        return list(torch.load(file, map_location="cpu", weights_only=True))
    except Exception as error:  # code, damage: torch, pickle and zipfile have classes of their own
        problem = f"{file} holds more than tensors (or is damaged): not opened"
        raise EnvironmentProblem(problem) from error


def unknown_names(model: PeftModel, names: Iterable[str]) -> list[str]:
    """Of the tensors in an adapter's files, those that the model has no place for."""
    with warnings.catch_warnings(action="ignore"):  # biases have one dimension, as they should
        own = get_peft_model_state_dict(model, save_embedding_layers=False)
    known = {_bare(name) for name in (*own, *model.state_dict())}
    return sorted(name for name in names if _bare(name) not in known)


def some(names: list[str], shown: int = 3) -> str:
    """A few of the names, and how many more there are."""
    more = f" and {len(names) - shown} more" if len(names) > shown else ""
    return ", ".join(names[:shown]) + more


def adapters_below(folder: Path) -> str:
    """Where else an adapter lies, as a clause to add: in a folder of this one (checkpoint-500)."""
    try:
        found = sorted(sub.name for sub in folder.iterdir() if (sub / CONFIG).is_file())
    except OSError:
        return ""
    return f"; {some(found)} in it: an adapter" if found else ""


def _bare(name: str) -> str:
    """A tensor's name as every version of peft has it."""
    return re.sub(r"\.default(?=\.|$)|\.modules_to_save", "", name)
