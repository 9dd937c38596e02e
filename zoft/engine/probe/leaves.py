"""Modules that read tuned parameters: observed on one forward pass, not derived from names.

A parameter is mostly read by the module that owns it, but peft keeps vectors in containers that are
never entered, Mamba reads a child's weight from the parent, and tied weights are read in two places.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence, Set
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from zoft.engine.probe.watched_pass import RowAxes, watch_pass
from zoft.errors import RecipeError
from zoft.models.meta import kept_in_float32


@dataclass(frozen=True, slots=True)
class ParameterRef:
    """A parameter and where its reader finds it: attribute `name` of `owner`. `param` is its id in the
    directions' address, None if it is frozen. `in_float32`: the model computes with it in float32,
    whatever it computes with otherwise."""

    owner: nn.Module
    name: str
    parameter: nn.Parameter
    param: int | None
    in_float32: bool = False

    @property
    def replaced(self) -> Tensor | None:
        """The tensor that a module around the reader has put in the parameter's place."""
        there: Tensor | None = self.owner._parameters[self.name]
        return None if there is self.parameter else there


@dataclass(frozen=True)
class Leaf:
    """A module that reads parameters, with references to those that it reads.

    `shares_input` are the leaves, itself among them, that read the same input one after the other (the
    projections of an attention block): numbers in the list of leaves. `row_axes` says of each argument
    of its forward which axis has the rows of the batch (see `watched_pass.py`).
    """

    module: nn.Module
    refs: tuple[ParameterRef, ...]
    shares_input: tuple[int, ...]
    row_axes: RowAxes

    @cached_property
    def weight(self) -> ParameterRef | None:
        """The module's own weight, if it is among `refs`."""
        return self._own("weight")

    @cached_property
    def bias(self) -> ParameterRef | None:
        """The module's own bias, if it is among `refs`."""
        return self._own("bias")

    def _own(self, name: str) -> ParameterRef | None:
        return next((r for r in self.refs if r.owner is self.module and r.name == name), None)

    def moving(self, parameters: Set[nn.Parameter]) -> Leaf:
        """The same module, of whose parameters only these are tuned."""
        refs = (r if r.parameter in parameters else replace(r, param=None) for r in self.refs)
        return replace(self, refs=tuple(refs))

    @cached_property
    def forward_type(self) -> Any:
        """The forward method of the module's class, by which a linear layer is recognised."""
        return getattr(type(self.module), "forward", None)

    @property
    def is_linear(self) -> bool:
        """Whether the module computes x W^T + b: nn.Linear, or GPT-2's Conv1D."""
        return self.forward_type in (nn.Linear.forward, Conv1D.forward)

    @cached_property
    def is_transposed(self) -> bool:
        """Whether a linear layer's weight is stored as (inputs, outputs)."""
        return self.forward_type is Conv1D.forward

    @property
    def only_own(self) -> bool:
        """Whether all parameters are attributes of the module itself."""
        return all(ref.owner is self.module for ref in self.refs)

    @cached_property
    def only_vectors(self) -> bool:
        """Whether no parameter is a matrix; one of a single row or column (IA3's) counts as a vector."""
        parameters = [ref.parameter for ref in self.refs]
        return all(p.ndim < 2 or p.numel() == max(p.shape) for p in parameters)

    @cached_property
    def only_contained(self) -> bool:
        """Whether all lie in containers inside the module: vectors that peft's layers multiply what the
        module below them computes by, minding types themselves."""
        return all(ref.owner is not self.module for ref in self.refs)

    def run_with(
        self, tensors: Sequence[Tensor], forward: Callable[..., Any], *args: Any, **kwargs: Any
    ) -> Any:
        """`forward(*args, **kwargs)` with `tensors` in place of the parameters of `refs`.

        torch.func.functional_call does the same at 40 us a call, more than a norm takes, and only for
        parameters inside the module.
        """
        before = [ref.owner._parameters[ref.name] for ref in self.refs]
        try:
            for ref, tensor in zip(self.refs, tensors, strict=True):
                ref.owner._parameters[ref.name] = tensor  # type: ignore[assignment]
            return forward(*args, **kwargs)
        finally:
            for ref, parameter in zip(self.refs, before, strict=True):
                ref.owner._parameters[ref.name] = parameter


def find_leaves(
    model: nn.Module,
    tuned: Mapping[str, nn.Parameter],
    ids: Mapping[str, int],
    compute_dtype: torch.dtype,
    example: Tensor,
) -> list[Leaf]:
    """Every module that reads a tuned weight, or a frozen one that is stored in another dtype than the
    model computes with it in, in the order of their first run.

    Raises RecipeError if a tuned parameter is never read.
    """
    number = {parameter: ids[name] for name, parameter in tuned.items()}
    in_float32 = kept_in_float32(model, compute_dtype)
    needed = [
        p
        for p in model.parameters()
        if p in number
        or (p.is_floating_point() and p.dtype != compute_dtype and p not in in_float32)
    ]
    watch = watch_pass(model, needed, example)
    lost = [name for name, parameter in tuned.items() if parameter not in watch.readers]
    if lost:
        raise UnreadParameters.among(tuned, lost, example.shape[1])
    owners: dict[nn.Parameter, ParameterRef] = {}
    for module in model.modules():
        for name, p in module.named_parameters(recurse=False):
            owners.setdefault(p, ParameterRef(module, name, p, number.get(p), p in in_float32))
    refs: dict[nn.Module, list[ParameterRef]] = {}
    for parameter in needed:
        for reader in watch.readers.get(parameter, []):
            own = next(
                (n for n, p in reader.named_parameters(recurse=False) if p is parameter), None
            )
            ref = owners[parameter]
            ref = replace(ref, owner=reader, name=own) if own else ref
            refs.setdefault(reader, []).append(ref)
    modules = list(refs)
    return [
        Leaf(m, tuple(refs[m]), _sharing(i, modules, watch.inputs), watch.row_axes.get(m, ()))
        for i, m in enumerate(modules)
    ]


class UnreadParameters(RecipeError):
    """Tuned parameters that a pass over rows of so many tokens does not read."""

    @classmethod
    def among(cls, tuned: Iterable[str], lost: Sequence[str], tokens: int) -> UnreadParameters:
        """The refusal, with the setting that leaves out those that are `lost`."""
        read = [name for name in tuned if name not in lost]
        globs = json.dumps(list(dict.fromkeys(_glob(name, read) for name in lost)))
        return cls(
            f"no forward pass reads {lost[0]}{' …' if len(lost) > 1 else ''} ({len(lost)} tuned "
            f"parameters, rows of {tokens} tokens): set 'tune.exclude={globs}'"
        )


def _glob(lost: str, read: Sequence[str]) -> str:
    """What matches a parameter and others like it, and none that is read."""
    parts = lost.split(".")
    globs = (f"*.{'.'.join(parts[i:j])}.*" for i, j in _spans(len(parts)))
    return next((g for g in globs if not any(fnmatchcase(name, g) for name in read)), lost)


def _spans(parts: int) -> Iterator[tuple[int, int]]:
    """Parts of a name that stand inside it, the fewest first."""
    for size in range(1, parts - 1):
        yield from ((i, i + size) for i in range(1, parts - size))


def _sharing(
    i: int, modules: list[nn.Module], inputs: dict[nn.Module, Tensor | None]
) -> tuple[int, ...]:
    """The modules whose first input is the tensor that module i read, i among them."""
    mine = inputs.get(modules[i])
    if mine is None:
        return (i,)
    return tuple(j for j, other in enumerate(modules) if inputs.get(other) is mine)
