"""What is wrong with a model's small files, where a library says it in words of its own."""

from __future__ import annotations

import codecs
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import tokenizers
import torch
import transformers
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from zoft.errors import first_line
from zoft.models.storage.safetensors import IS_POINTER, POINTER

FILES = ("config.json", "tokenizer_config.json", "tokenizer.json", "generation_config.json")


def explained(error: BaseException, folder: Path | str) -> str:
    """Why a library cannot load what lies in `folder`: the fault of its files, if one is found."""
    said = str(error)
    if "trust_remote_code" in said or "custom code" in said:
        return "it brings code of its own; model.trust_remote_code=true runs it: read it first"
    if fault := fault_of(Path(folder)):
        return fault
    if "did not match any variant" in said:
        return (
            f"tokenizer.json is of a kind that tokenizers {tokenizers.__version__} does not know; "
            "a newer one may: pip install -U tokenizers transformers"
        )
    config, _ = read_object(Path(folder) / "tokenizer_config.json")
    if isinstance(error, TypeError) and (kind := config.get("tokenizer_class")):
        return f"{first_line(error)}; tokenizer_config.json names the class {kind}: is it the right one?"
    return first_line(error)


def fault_of(folder: Path) -> str | None:
    """The first fault of the JSON files in a model's folder, with the file's name and the way out."""
    for name in FILES:
        if (folder / name).is_file():
            content, fault = read_object(folder / name)
            if fault or (name == "config.json" and (fault := config_fault(content))):
                return f"{name}: {fault}"
    if folder.is_dir() and not (folder / "config.json").exists():
        return "there is no config.json in it"
    return None


def config_fault(config: Mapping[str, Any]) -> str | None:
    """What a model's config asks for that torch and transformers do not have."""
    for key in ("dtype", "torch_dtype"):
        name = config.get(key)
        if isinstance(name, str) and not isinstance(getattr(torch, name, None), torch.dtype):
            return f"{key} {name!r} is no type of torch; write bfloat16, float16 or float32"
    rope = config.get("rope_parameters") or config.get("rope_scaling")
    if not isinstance(rope, dict):
        return None
    kind = rope.get("rope_type", rope.get("type", "default"))
    if isinstance(kind, str) and kind not in ("default", *ROPE_INIT_FUNCTIONS):
        known = ", ".join(ROPE_INIT_FUNCTIONS)
        return f"rope type {kind!r} is none that transformers {transformers.__version__} knows: {known}"
    if isinstance(rope.get("factor"), str):
        return f"the rope's factor is text, {rope['factor']!r}; write it as a number"
    return None


def read_object(file: Path) -> tuple[dict[str, Any], str | None]:
    """The object in a JSON file, or what is wrong with it."""
    try:
        content = file.read_bytes()
        if content.startswith(POINTER):
            return {}, IS_POINTER
        if content.startswith(codecs.BOM_UTF8):
            return {}, "it begins with a byte order mark; save it as UTF-8 without one"
        found = json.loads(content)
    except OSError as error:
        return {}, error.strerror or str(error)
    except (ValueError, RecursionError) as error:
        return {}, f"not valid JSON ({error}); fetch it again"
    return (found, None) if isinstance(found, dict) else ({}, "expected an object")
