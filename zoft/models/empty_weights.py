"""A model without its weights: every tensor in its place and of its type, none of it read.

transformers itself does the placing. It is handed traced tensors instead of weights, so its rules for
names, types, ties, buffers and conversions all hold; afterwards each parameter tells which tensors of
the files it is made of.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedConfig, PreTrainedModel

from zoft.models.blocks import placeholder
from zoft.models.storage.gathered import Source, source_of
from zoft.models.storage.safetensors import Reader, Stored
from zoft.models.storage.tracing import Traced, trace


@dataclass(frozen=True)
class EmptyModel:
    """A model with placeholders for weights, and in `sources` by name where these lie in files.

    Buffers that no file holds are as they will be. `unmapped` are weights that transformers computes
    by other than copying: where there are any, load the model eagerly.
    """

    model: PreTrainedModel
    sources: dict[str, Source]
    unmapped: list[str]
    report: dict[str, Any]  # what transformers found missing or unexpected


def model_on_meta(
    config: PreTrainedConfig, dtype: torch.dtype, trust_remote_code: bool = False
) -> PreTrainedModel:
    """The decoder of a config with shapes and types but no memory (milliseconds, also for 70B)."""
    from_config: Any = AutoModelForCausalLM.from_config
    with torch.device("meta"):
        model: PreTrainedModel = from_config(
            config, dtype=dtype, trust_remote_code=trust_remote_code
        )
    return model


def build_empty_model(
    location: Path | str, stored: dict[str, Stored], dtype: torch.dtype, trust_remote_code: bool
) -> EmptyModel | None:
    """The decoder at `location`, whose files hold `stored`, with weights of `dtype`.

    None for a quantised checkpoint: what its tensors mean only its own loader knows.
    Raises whatever transformers raises.
    """
    config = AutoConfig.from_pretrained(
        str(location), trust_remote_code=trust_remote_code, local_files_only=True
    )
    if getattr(config, "quantization_config", None) is not None:
        return None
    plan = model_on_meta(config, dtype, trust_remote_code)
    copies = _copies(plan, stored, dtype)
    stored = {name: entry for name, entry in stored.items() if name not in copies}
    answer: Any = type(plan).from_pretrained(
        None,
        config=plan.config,
        state_dict={name: trace(name, s.dtype, s.shape) for name, s in stored.items()},
        dtype=dtype,
        trust_remote_code=trust_remote_code,
        output_loading_info=True,
    )
    model, report = answer
    if model.can_generate():
        _set_generation_config(model, location, trust_remote_code)
    sources, unmapped = _without_traces(model, stored)
    return EmptyModel(model, sources, unmapped, report)


def _without_traces(
    model: PreTrainedModel, stored: dict[str, Stored]
) -> tuple[dict[str, Source], list[str]]:
    """Put placeholders where traced tensors are; returns where these lie, and which lie nowhere."""
    sources: dict[str, Source] = {}
    unmapped: list[str] = []
    seen: dict[Tensor, Tensor] = {}  # what is tied stays tied
    for path, module in model.named_modules():
        for entries in (module._parameters, module._buffers):
            for key, tensor in entries.items():
                if tensor is None:
                    continue
                if tensor not in seen:
                    name = f"{path}.{key}" if path else key
                    seen[tensor] = tensor
                    if isinstance(tensor, Traced):
                        seen[tensor] = empty = placeholder(tensor.like, "cpu")
                        if isinstance(tensor, torch.nn.Parameter):
                            seen[tensor] = torch.nn.Parameter(empty, tensor.requires_grad)
                        if tensor.pieces is not None:
                            sources[name] = source_of(tensor.shape, tensor.pieces, stored)
                    if isinstance(tensor, torch.nn.Parameter) and name not in sources:
                        unmapped.append(name)
                entries[key] = seen[tensor]
    return sources, unmapped


def _named(stored: dict[str, Stored], name: str, model: PreTrainedModel) -> Stored | None:
    """By its own name, or without the base model's prefix, or with it."""
    prefix = f"{model.base_model_prefix}."
    for candidate in (name, name.removeprefix(prefix), prefix + name):
        if candidate in stored:
            return stored[candidate]
    return None


def _copies(model: PreTrainedModel, stored: dict[str, Stored], dtype: torch.dtype) -> set[str]:
    """Tied weights that the files hold twice, by the name to leave out.

    transformers ties such a pair if its numbers are equal, which placeholders cannot show.
    """
    names = {id(entry): name for name, entry in stored.items()}
    copies = set()
    for target, source in model.get_expanded_tied_weights_keys(all_submodels=True).items():
        one, other = (_named(stored, name, model) for name in (target, source))
        if one is None or other is None or one is other:
            continue
        if (one.dtype, one.shape) == (other.dtype, other.shape) and _equal(one, other, dtype):
            copies.add(names[id(one)])
    return copies


def _equal(one: Stored, other: Stored, dtype: torch.dtype) -> bool:
    """Whether both hold the same numbers once they are of `dtype`."""
    with Reader(drop_pages=False) as first, Reader(drop_pages=False) as second:
        return all(
            torch.equal(*(torch.frombuffer(raw, dtype=one.dtype).to(dtype) for raw in pair))
            for pair in zip(first.pieces(one), second.pieces(other), strict=True)
        )


def _set_generation_config(
    model: PreTrainedModel, location: Path | str, trust_remote_code: bool
) -> None:
    """As from_pretrained does for a folder; without one it leaves the class's defaults."""
    adjust: Any = model.adjust_generation_fn
    adjust(
        None,
        from_auto_class=True,
        from_pipeline=None,
        pretrained_model_name_or_path=str(location),
        cache_dir=None,
        force_download=False,
        proxies=None,
        local_files_only=True,
        token=None,
        revision=None,
        subfolder="",
        trust_remote_code=trust_remote_code,
    )
