"""The blocks of a decoder: what is streamed one after the other, and what is no part of it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Set
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from zoft.errors import EnvironmentProblem


@dataclass(frozen=True)
class Blocks:
    """The children of one `nn.ModuleList`; `name` is the list's own in the model."""

    name: str
    modules: list[nn.Module]


@dataclass(frozen=True)
class Block:
    """One that is streamed: the module whose run needs it, and its own parameters by their names."""

    module: nn.Module
    parameters: Mapping[str, Tensor]


def find_blocks(model: nn.Module) -> Blocks:
    """The decoder's outermost list of modules that owns the most parameters; lists inside it are its
    own.

    Raises EnvironmentProblem if the model has none.
    """
    towers = tuple(f"{tower}." for tower in find_towers(model))
    found = [
        (_numel(blocks), name, blocks)
        for name, blocks in _outermost_lists(model)
        if not f"{name}.".startswith(towers)
    ]
    if not found:
        raise EnvironmentProblem(
            f"{type(model).__name__} has no list of blocks, so it cannot be streamed"
        )
    _, name, blocks = max(found, key=lambda entry: entry[0])
    return Blocks(name, list(blocks))


def find_towers(model: nn.Module) -> tuple[str, ...]:
    """Names of the modules for images and sound: what stands beside the decoder of a model of several
    modalities, projectors included, and what inside it reads no text. Text alone never enters them."""
    for name, base in model.named_modules():
        if isinstance(base, PreTrainedModel):
            apart = base.config.get_text_config(decoder=True) is not base.config
            decoder: nn.Module = base.get_decoder() if apart else base  # type: ignore[no-untyped-call]
            ends = (base.get_input_embeddings(), base.get_output_embeddings())  # type: ignore[no-untyped-call]
            needed = {decoder, *ends}
            return tuple(_beside(base, f"{name}." if name else "", decoder, needed))
    return ()


def placeholder(like: Tensor, device: torch.device | str = "cpu") -> Tensor:
    """One NaN that fills the whole shape: poison, in a few bytes, for whoever computes with it."""
    value = float("nan") if like.is_floating_point() else 0
    return torch.full((2,), value, dtype=like.dtype, device=device)[1].expand(like.shape)


def is_placeholder(tensor: Tensor) -> bool:
    """Whether the tensor's numbers are elsewhere now: no tensor with some begins at an offset of 1."""
    return tensor.storage_offset() == 1


def owned_parameters(model: nn.Module, blocks: Blocks) -> list[dict[str, nn.Parameter]]:
    """Of each block, the parameters that it alone has, by their names in the model.

    What a block shares (with another, or with the rest of the model) is not in it.
    """
    uses = Counter(parameter for _, parameter in model.named_parameters(remove_duplicate=False))
    return [
        {
            f"{blocks.name}.{i}.{name}": parameter
            for name, parameter in block.named_parameters()
            if uses[parameter] == _uses_inside(block, parameter)
        }
        for i, block in enumerate(blocks.modules)
    ]


def _outermost_lists(module: nn.Module, prefix: str = "") -> Iterator[tuple[str, nn.ModuleList]]:
    """Yield (name, list) for every module list that is in no other."""
    for name, child in module.named_children():
        if isinstance(child, nn.ModuleList):
            yield prefix + name, child
        else:
            yield from _outermost_lists(child, f"{prefix}{name}.")


def _beside(
    module: nn.Module, prefix: str, decoder: nn.Module, needed: Set[nn.Module]
) -> Iterator[str]:
    """Yield the outermost modules that hold nothing of `needed` and are outside the decoder or for
    another modality."""
    inside = module is decoder
    for name, child in module.named_children():
        parts = set(child.modules())
        if needed & parts:
            yield from _beside(child, f"{prefix}{name}.", child if inside else decoder, needed)
        elif (not inside and any(True for _ in child.parameters())) or any(
            isinstance(part, PreTrainedModel) and "text" not in part.input_modalities
            for part in parts
        ):
            yield prefix + name


def _numel(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def _uses_inside(block: nn.Module, parameter: nn.Parameter) -> int:
    """Count how often the block has the parameter, ties included."""
    return sum(p is parameter for _, p in block.named_parameters(remove_duplicate=False))
