"""One forward pass that is watched: which modules read which parameters, and where the rows are."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from zoft.models.blocks import is_placeholder

ROWS = 5  # of the pass that is watched: few sizes in a model are 5, or 5 times its tokens
NO_TENSOR = -1

RowAxes = tuple[int | None, ...]


class WatchedPass(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """What one forward pass shows: the innermost modules that read each parameter, in order; the first
    input of every module (None for one that ran twice: it has no input of its own); and which axis of
    its arguments has the rows.

    A parameter that comes and goes with its block is looked for anew in every module. One that a module
    was handed as an argument is read by the module that took it from its place.
    """

    def __init__(self, model: nn.Module, parameters: Iterable[Tensor], example: Tensor) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.parameters = list(parameters)
        self.buffers = {_address(buffer) for buffer in model.buffers()}
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
                parameter = self._at(_address(leaf))
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
            parameter = self._at(_address(x)) if isinstance(x, Tensor) and x.numel() else None
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
        return _address(x) in self.buffers or self._at(_address(x)) is not None

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
        self.there = sorted(((_address(p), p) for p in there), key=lambda found: found[0])
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


def watch_pass(model: nn.Module, parameters: Iterable[Tensor], example: Tensor) -> WatchedPass:
    """Run the model on ROWS rows of `example`, and return what was seen."""
    rows = example[:1].expand(ROWS, -1).contiguous()
    watch = WatchedPass(model, parameters, rows)
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


def _address(tensor: Tensor) -> int:
    """Where its numbers begin. On the meta device every storage is as if far from the others."""
    if not tensor.is_meta:
        return tensor.data_ptr()
    begin = int(tensor.untyped_storage()._cdata) << 48
    return begin + int(tensor.storage_offset()) * tensor.itemsize


def _row_axis(x: object, rows: int, tokens: int) -> int | None:
    """Which axis of an argument has the batch's rows (or its rows times tokens, in the first place);
    NO_TENSOR for what is no tensor, None for one without rows."""
    if not isinstance(x, Tensor):
        return NO_TENSOR
    if x.ndim and x.shape[0] and x.shape[0] % (rows * tokens) == 0:
        return 0
    return next((axis for axis, size in enumerate(x.shape) if size == rows), None)
