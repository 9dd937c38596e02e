"""Which modules read which parameters: watched on one forward pass, not guessed from names.

A parameter is mostly read by the module that owns it, but peft keeps vectors in containers that are
never entered, Mamba reads a child's weight from the parent, and tied weights are read in two places.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules import module as hooks
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from zoft.models.blocks import is_placeholder


class _Watch(TorchDispatchMode):  # type: ignore[no-untyped-call]
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


def find_readers(
    parameters: Iterable[Tensor], forward: Callable[[], object]
) -> tuple[dict[Tensor, list[nn.Module]], dict[nn.Module, Tensor | None]]:
    """Run `forward` and return the innermost modules that read each parameter, in order, and the
    first input of every module (None for one that ran twice: it has no input of its own).

    A parameter that nothing reads is missing from the result. One that comes and goes with its block
    is looked for anew in every module.
    """
    watch = _Watch(parameters)
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
