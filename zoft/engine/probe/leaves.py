"""Modules that read tuned parameters: observed on one forward pass, not derived from names.

A parameter is mostly read by the module that owns it, but peft keeps vectors in containers that are
never entered, Mamba reads a child's weight from the parent, and tied weights are read in two places.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules import module as hooks
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from transformers.pytorch_utils import Conv1D

from zoft.errors import RecipeError
from zoft.models.blocks import is_placeholder


@dataclass(frozen=True, slots=True)
class ParameterRef:
    """A parameter and where its reader finds it: attribute `name` of `owner`. `param` is its id in the
    directions' address, None if it is frozen."""

    owner: nn.Module
    name: str
    parameter: nn.Parameter
    param: int | None


@dataclass(frozen=True)
class Leaf:
    """A module that reads parameters, with references to those that it reads.

    `shares_input` are the leaves, itself among them, that read the same input one after the other (the
    projections of an attention block): numbers in the list of leaves.
    """

    module: nn.Module
    refs: tuple[ParameterRef, ...]
    shares_input: tuple[int, ...]

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
        try:
            for ref, tensor in zip(self.refs, tensors, strict=True):
                ref.owner._parameters[ref.name] = tensor  # type: ignore[assignment]
            return forward(*args, **kwargs)
        finally:
            for ref in self.refs:
                ref.owner._parameters[ref.name] = ref.parameter


def find_leaves(
    model: nn.Module,
    tuned: Mapping[str, nn.Parameter],
    ids: Mapping[str, int],
    compute_dtype: torch.dtype,
    example: Tensor,
) -> list[Leaf]:
    """Every module that reads a tuned weight, or a frozen one that is stored in another dtype, in the
    order of their first run.

    Raises RecipeError if a tuned parameter is never read.
    """
    number = {parameter: ids[name] for name, parameter in tuned.items()}
    needed = [
        p
        for p in model.parameters()
        if p in number or (p.is_floating_point() and p.dtype != compute_dtype)
    ]
    readers, inputs = _find_readers(needed, lambda: model(input_ids=example, use_cache=False))
    lost = [name for name, parameter in tuned.items() if parameter not in readers]
    if lost:
        raise RecipeError(
            f"no forward pass reads {', '.join(lost[:3])}{' …' if len(lost) > 3 else ''} "
            f"({len(lost)} tuned parameters): name them in tune.exclude"
        )
    owners: dict[nn.Parameter, ParameterRef] = {}
    for module in model.modules():
        for name, parameter in module.named_parameters(recurse=False):
            owner = ParameterRef(module, name, parameter, number.get(parameter))
            owners.setdefault(parameter, owner)
    refs: dict[nn.Module, list[ParameterRef]] = {}
    for parameter in needed:
        for reader in readers.get(parameter, []):
            own = next(
                (n for n, p in reader.named_parameters(recurse=False) if p is parameter), None
            )
            ref = ParameterRef(reader, own, parameter, number.get(parameter)) if own else None
            refs.setdefault(reader, []).append(ref or owners[parameter])
    modules = list(refs)
    return [Leaf(m, tuple(refs[m]), _sharing(i, modules, inputs)) for i, m in enumerate(modules)]


def _sharing(
    i: int, modules: list[nn.Module], inputs: dict[nn.Module, Tensor | None]
) -> tuple[int, ...]:
    """The modules whose first input is the tensor that module i read, i among them."""
    mine = inputs.get(modules[i])
    if mine is None:
        return (i,)
    return tuple(j for j, other in enumerate(modules) if inputs.get(other) is mine)


class _ReadRecorder(TorchDispatchMode):  # type: ignore[no-untyped-call]
    def __init__(self, parameters: Iterable[Tensor]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.parameters = list(parameters)
        self.running: list[nn.Module] = []
        self.readers: dict[Tensor, list[nn.Module]] = {}
        self.moved = True  # parameters may lie elsewhere than when they were last looked for

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        if self.moved:
            self.moved = False
            self._find()
        for leaf in tree_leaves((args, kwargs)):
            if isinstance(leaf, Tensor) and self.running and leaf.numel():
                parameter = self._at(leaf.data_ptr())
                if parameter is not None:
                    found = self.readers.setdefault(parameter, [])
                    if self.running[-1] not in found:
                        found.append(self.running[-1])
        return func(*args, **(kwargs or {}))

    def _find(self) -> None:
        """Note where the parameters lie that are there; a streamed block's are while it runs."""
        there = [p for p in self.parameters if not is_placeholder(p)]
        self.there = sorted(((p.data_ptr(), p) for p in there), key=lambda found: found[0])
        self.begins = [begin for begin, _ in self.there]

    def _at(self, address: int) -> Tensor | None:
        """The parameter that has the address in it: a view (a transpose, a slice) begins there."""
        i = bisect_right(self.begins, address) - 1
        if i < 0:
            return None
        begin, parameter = self.there[i]
        return parameter if address < begin + parameter.nbytes else None


def _find_readers(
    parameters: Iterable[Tensor], forward: Callable[[], object]
) -> tuple[dict[Tensor, list[nn.Module]], dict[nn.Module, Tensor | None]]:
    """Run `forward` and return the innermost modules that read each parameter, in order, and the
    first input of every module (None for one that ran twice: it has no input of its own).

    A parameter that nothing reads is missing from the result. One that comes and goes with its block
    is looked for anew in every module.
    """
    watch = _ReadRecorder(parameters)
    inputs: dict[nn.Module, Tensor | None] = {}

    def enter(module: nn.Module, given: Any) -> None:
        watch.running.append(module)
        watch.moved = True
        first = given[0] if given and isinstance(given[0], Tensor) else None
        inputs[module] = None if module in inputs else first

    def leave(_module: nn.Module, _inputs: Any, _output: Any) -> None:
        watch.running.pop()
        watch.moved = True

    handles = [
        hooks.register_module_forward_pre_hook(enter),
        hooks.register_module_forward_hook(leave, always_call=True),
    ]
    try:
        with torch.no_grad(), watch:
            forward()
    finally:
        for handle in handles:
            handle.remove()
    return watch.readers, inputs
