"""Modules that read tuned parameters: observed on one forward pass, not derived from names.

A parameter is mostly read by the module that owns it, but peft keeps vectors in containers that are
never entered, Mamba reads a child's weight from the parent, and tied weights are read in two places.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from transformers.pytorch_utils import Conv1D

from zoft.errors import RecipeError
from zoft.models.blocks import is_placeholder
from zoft.models.meta import kept_in_float32

ROWS = 5  # of the pass that is watched: few sizes in a model are 5, or 5 times its tokens
NO_TENSOR = -1

RowAxes = tuple[int | None, ...]


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
    of its forward which axis has the rows of the batch (see `_row_axis`).
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
    watch = _watch(model, needed, example)
    lost = [name for name, parameter in tuned.items() if parameter not in watch.readers]
    if lost:
        raise UnreadParameters(lost, example.shape[1])
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

    def __init__(self, names: Sequence[str], tokens: int) -> None:
        super().__init__(
            f"no forward pass reads {', '.join(names[:3])}{' …' if len(names) > 3 else ''} "
            f"({len(names)} tuned parameters, rows of {tokens} tokens): name them in tune.exclude"
        )


def _sharing(
    i: int, modules: list[nn.Module], inputs: dict[nn.Module, Tensor | None]
) -> tuple[int, ...]:
    """The modules whose first input is the tensor that module i read, i among them."""
    mine = inputs.get(modules[i])
    if mine is None:
        return (i,)
    return tuple(j for j, other in enumerate(modules) if inputs.get(other) is mine)


class _Watch(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """What one forward pass shows: the innermost modules that read each parameter, in order; the first
    input of every module (None for one that ran twice: it has no input of its own); and which axis of
    its arguments has the rows.

    A parameter that comes and goes with its block is looked for anew in every module. One that a module
    was handed as an argument is read by the module that took it from its place.
    """

    def __init__(self, model: nn.Module, parameters: Iterable[Tensor], example: Tensor) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.parameters = list(parameters)
        self.buffers = {buffer.data_ptr() for buffer in model.buffers()}
        self.rows, self.tokens = example.shape
        self.running: list[tuple[nn.Module, list[Tensor]]] = []
        self.readers: dict[Tensor, list[nn.Module]] = {}
        self.inputs: dict[nn.Module, Tensor | None] = {}
        self.row_axes: dict[nn.Module, RowAxes] = {}
        self.moved = True  # parameters may lie elsewhere than when they were last looked for

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        for leaf in tree_leaves((args, kwargs)):
            if isinstance(leaf, Tensor) and self.running and leaf.numel():
                parameter = self._at(leaf.data_ptr())
                if parameter is not None:
                    found = self.readers.setdefault(parameter, [])
                    reader = self._reader(parameter)
                    if reader not in found:
                        found.append(reader)
        return func(*args, **(kwargs or {}))

    def enter(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Note what the module was handed."""
        self.moved = True
        first = args[0] if args and isinstance(args[0], Tensor) else None
        self.inputs[module] = None if module in self.inputs else first
        handed, axes = [], []
        for x in tree_leaves((args, kwargs)):
            parameter = self._at(x.data_ptr()) if isinstance(x, Tensor) and x.numel() else None
            if parameter is not None:
                handed.append(parameter)
            axes.append(None if self._is_weight(x) else _row_axis(x, self.rows, self.tokens))
        self.running.append((module, handed))
        if self.row_axes.setdefault(module, tuple(axes)) != tuple(axes):
            self.row_axes[module] = ()  # it is called in several ways

    def leave(self, _module: nn.Module, _inputs: Any, _output: Any) -> None:
        """Note that the module has run."""
        self.running.pop()
        self.moved = True

    def _is_weight(self, x: object) -> bool:
        """Whether it is a parameter or a buffer: those have no rows, whatever their size."""
        if not isinstance(x, Tensor) or not x.numel():
            return False
        return x.data_ptr() in self.buffers or self._at(x.data_ptr()) is not None

    def _reader(self, parameter: Tensor) -> nn.Module:
        """The innermost running module that was not handed the parameter."""
        return next(
            module
            for module, handed in reversed(self.running)
            if not any(p is parameter for p in handed)
        )

    def _find(self) -> None:
        """Note where the parameters lie that are there; a streamed block's are while it runs."""
        there = [p for p in self.parameters if not is_placeholder(p)]
        self.there = sorted(((p.data_ptr(), p) for p in there), key=lambda found: found[0])
        self.begins = [begin for begin, _ in self.there]

    def _at(self, address: int) -> Tensor | None:
        """The parameter that has the address in it: a view (a transpose, a slice) begins there."""
        if self.moved:
            self.moved = False
            self._find()
        i = bisect_right(self.begins, address) - 1
        if i < 0:
            return None
        begin, parameter = self.there[i]
        return parameter if address < begin + parameter.nbytes else None


def _watch(model: nn.Module, parameters: Iterable[Tensor], example: Tensor) -> _Watch:
    """Run the model on ROWS rows of `example`, and return what was seen."""
    rows = example[:1].expand(ROWS, -1).contiguous()
    watch = _Watch(model, parameters, rows)
    handles = []
    for module in model.modules():
        handles += [
            module.register_forward_pre_hook(watch.enter, with_kwargs=True),
            module.register_forward_hook(watch.leave, always_call=True),
        ]
    try:
        with torch.no_grad(), watch:
            model(input_ids=rows, use_cache=False)
    finally:
        for handle in handles:
            handle.remove()
    return watch


def _row_axis(x: object, rows: int, tokens: int) -> int | None:
    """Which axis of an argument has the batch's rows (or its rows times tokens, in the first place);
    NO_TENSOR for what is no tensor, None for one without rows."""
    if not isinstance(x, Tensor):
        return NO_TENSOR
    if x.ndim and x.shape[0] and x.shape[0] % (rows * tokens) == 0:
        return 0
    return next((axis for axis, size in enumerate(x.shape) if size == rows), None)
