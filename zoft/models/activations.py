"""Bytes that a forward pass keeps in memory, counted in a pass over an outline (`meta.py`).

Tensors on the meta device have shapes and lifetimes but no data, so a pass over them shows which
activations are alive at once in any architecture. Not seen: what kernels take inside themselves.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Set
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.multiprocessing.reductions import StorageWeakRef
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


@dataclass(frozen=True, slots=True)
class Pass:
    """`live`: the most bytes of activations at once, the logits left out. `bare_head`: what the head
    computes is what the model returns."""

    live: int
    bare_head: bool


def trace_pass(model: nn.Module, rows: int, length: int) -> Pass:
    """Run (rows, length) token ids through an outline; it is left as it was.

    Raises RuntimeError or whatever else a model raises that looks at its numbers on the way.
    """
    live = _Live({p.untyped_storage()._cdata for p in (*model.parameters(), *model.buffers())})
    with torch.no_grad(), _Flash(), live, _without_logits(model) as made:
        logits = _run(model, rows, length)
    return Pass(live.peak, logits is made[0] or (logits._is_view() and logits._base is made[0]))


def trace_saved(model: nn.Module, learns: Set[str], rows: int, length: int) -> int:
    """Bytes that back-propagation to the parameters `learns` keeps of a pass, logits left out.

    Raises as `trace_pass` does.
    """
    saved = _Saved({p.untyped_storage()._cdata for p in (*model.parameters(), *model.buffers())})
    learning = [p for name, p in model.named_parameters() if name in learns]
    hooks = torch.autograd.graph.saved_tensors_hooks(saved.pack, lambda x: x)
    try:
        for parameter in learning:
            parameter.requires_grad_(True)
        with torch.enable_grad(), _Flash(saved.pack), Scalars(), hooks, _without_logits(model):
            _run(model, rows, length)
    finally:
        for parameter in learning:
            parameter.requires_grad_(False)
    return saved.bytes


def _run(model: nn.Module, rows: int, length: int) -> Tensor:
    """Return the logits of (rows, length) token ids on the meta device."""
    ids = torch.zeros(rows, length, dtype=torch.int64, device="meta")
    logits: Tensor = model(input_ids=ids, use_cache=False).logits
    return logits


@contextmanager
def _without_logits(model: nn.Module) -> Iterator[list[Tensor]]:
    """The head returns one number, which is put in the list."""
    head: nn.Module = model.get_output_embeddings()  # type: ignore[operator]
    made: list[Tensor] = []

    def lean(hidden: Tensor) -> Tensor:
        made.append(hidden.new_empty(1, 1, 1))
        return made[-1]

    head.forward = lean
    try:
        yield made
    finally:
        del head.forward


class Scalars(TorchDispatchMode):
    """Answers `if (positions == 0).all():` and `.item()`, which a tensor without data cannot: yes, 1.

    What decoders ask are checks of their inputs, which ours pass.
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        if func is torch.ops.aten._local_scalar_dense.default:
            [x] = args
            return True if x.dtype == torch.bool else 1.0 if x.is_floating_point() else 1
        return func(*args, **(kwargs or {}))


class _Live(Scalars):  # type: ignore[no-untyped-call]
    """Adds up the storages that are alive after every operation."""

    def __init__(self, kept: set[int]) -> None:
        super().__init__()
        self.kept, self.peak = kept, 0
        self.alive: dict[int, tuple[Any, int]] = {}  # by address: a weak reference, bytes

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        output = super().__torch_dispatch__(func, types, args, kwargs)
        for x in tree_leaves(output):
            if isinstance(x, Tensor) and (storage := x.untyped_storage())._cdata not in self.kept:
                weak: Any = StorageWeakRef
                self.alive[storage._cdata] = weak(storage), storage.nbytes()
        self.alive = {key: entry for key, entry in self.alive.items() if not entry[0].expired()}
        self.peak = max(self.peak, sum(size for _, size in self.alive.values()))
        return output


class _Flash(TorchFunctionMode):
    """Attention as fused kernels do it, without the scores that torch would store here."""

    def __init__(self, keep: Callable[[Tensor], object] = lambda _: None) -> None:
        super().__init__()
        self.keep = keep

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        if func is not nn.functional.scaled_dot_product_attention:
            return func(*args, **kwargs)
        query, key, value = [
            *args,
            *(kwargs[name] for name in ("query", "key", "value") if name in kwargs),
        ][:3]
        output = query.new_empty((*query.shape[:-1], value.shape[-1]))
        for x in (query, key, value, output):
            self.keep(x)
        return output


class _Saved:
    """Counts what autograd would keep, each storage once, without the weights."""

    def __init__(self, kept: set[int]) -> None:
        self.kept, self.bytes = kept, 0
        self.seen: dict[int, Tensor] = {}  # held, so that no address is used twice

    def pack(self, x: Tensor) -> Tensor:
        """Count the storage of a tensor that autograd saves, if it is a new one."""
        key = x.untyped_storage()._cdata
        if key not in self.kept and key not in self.seen:
            self.seen[key] = x
            self.bytes += x.untyped_storage().nbytes()
        return x
