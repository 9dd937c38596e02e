"""Tensors without numbers that know which stored numbers theirs would be.

transformers converts many checkpoints while it loads them (experts that lie apart become one tensor)
and back while it saves. Handed these tensors instead of weights, its own code shows where everything
goes, whatever its table of conversions says, and nothing is read, copied or computed.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves, tree_map_only

_ATEN = torch.ops.aten
_SAME = {  # the same numbers in the same places, whatever their type and memory
    _ATEN.alias.default,
    _ATEN.clone.default,
    _ATEN.detach.default,
    _ATEN._to_copy.default,
}


@dataclass(frozen=True, slots=True)
class Piece:
    """A box of a tensor, from `origin` on, and where its numbers are in the tensor `source`.

    There they lie from element `offset` on, row-major, `strides` apart.
    """

    source: str
    origin: tuple[int, ...]
    shape: tuple[int, ...]
    offset: int
    strides: tuple[int, ...]

    @property
    def in_order(self) -> bool:
        """Whether its numbers lie one after the other in the source, in the order of the box."""
        sizes = [(n, stride) for n, stride in zip(self.shape, self.strides, strict=True) if n > 1]
        steps = [math.prod(n for n, _ in sizes[i + 1 :]) for i in range(len(sizes))]
        return steps == [stride for _, stride in sizes]

    def place(self, whole: Tensor) -> Tensor:
        """Its box in the tensor that it is a piece of."""
        ends = zip(self.origin, self.shape, strict=True)
        return whole[tuple(slice(begin, begin + n) for begin, n in ends)]

    def rows(self) -> list[Piece]:
        """Itself cut along its first dimension."""
        return [
            Piece(
                self.source,
                (self.origin[0] + i, *self.origin[1:]),
                (1, *self.shape[1:]),
                self.offset + i * self.strides[0],
                self.strides,
            )
            for i in range(self.shape[0])
        ]


_Part = tuple[tuple[int, ...], str, Tensor]  # origin, source, and a view of the source on meta


class Traced(Tensor):
    """A tensor of a shape and type; `pieces` are None where its numbers would have to be computed."""

    like: Tensor  # itself on torch's meta device: shape, strides and storage as they would be
    _parts: list[_Part] | None

    @staticmethod
    def __new__(cls, like: Tensor, parts: list[_Part] | None) -> Traced:
        wrap: Any = Tensor._make_wrapper_subclass
        made: Traced = wrap(
            cls,
            like.shape,
            strides=like.stride(),
            storage_offset=like.storage_offset(),
            dtype=like.dtype,
            device="cpu",
        )
        made.like, made._parts = like, parts
        return made

    @property
    def pieces(self) -> list[Piece] | None:
        if self._parts is None:
            return None
        return [
            Piece(source, origin, tuple(view.shape), int(view.storage_offset()), view.stride())
            for origin, source, view in self._parts
        ]

    @classmethod
    def __torch_dispatch__(  # type: ignore[override]  # torch declares it without a class
        cls,
        func: Any,
        types: Iterable[type],
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        if func is _ATEN.equal.default:
            return False  # nobody knows
        # With numbers of its own a model computes beside it (RWKV's decays), and so nothing is known.
        plain, named = tree_map_only(Tensor, _on_meta, (args, kwargs or {}))
        if "device" in named:
            named["device"] = torch.device("meta")
        result = func(*plain, **named)
        if func._schema.is_mutable:
            for tensor in tree_leaves(args[0]):
                tensor._parts = None
            return args[0]
        if isinstance(result, Tensor):
            return cls(result, _parts_after(func, args))
        if isinstance(result, list | tuple) and all(isinstance(x, Tensor) for x in result):
            moved = _views(func, args)
            return [cls(x, moved[i] if moved else None) for i, x in enumerate(result)]
        return result


def _on_meta(tensor: Tensor) -> Tensor:
    """The tensor without its numbers."""
    return tensor.like if isinstance(tensor, Traced) else tensor.to("meta")


def trace(name: str, dtype: torch.dtype, shape: Sequence[int]) -> Traced:
    """A tensor that is called `name` in a checkpoint or a model."""
    like = torch.empty(tuple(shape), dtype=dtype, device="meta")
    return Traced(like, [((0,) * like.dim(), name, like)])


def _parts_after(func: Any, args: Sequence[Any]) -> list[_Part] | None:
    """The parts of the one tensor that an operation makes."""
    if func in _SAME:
        return list(args[0]._parts) if args[0]._parts is not None else None
    if func in (_ATEN.cat.default, _ATEN.stack.default):
        return _joined(args[0], args[1] if len(args) > 1 else 0, new=func is _ATEN.stack.default)
    moved = _views(func, args)
    return moved[0] if moved else None


def _joined(tensors: Sequence[Any], dim: int, *, new: bool) -> list[_Part] | None:
    """One after the other along a dimension, which is a `new` one if they are stacked."""
    parts: list[_Part] = []
    dim %= tensors[0].dim() + new
    begin = 0
    for tensor in tensors:
        if not isinstance(tensor, Traced) or tensor._parts is None:
            return None
        for origin, source, view in tensor._parts:
            if new:
                parts.append(((*origin[:dim], begin, *origin[dim:]), source, view.unsqueeze(dim)))
            else:
                there = (*origin[:dim], origin[dim] + begin, *origin[dim + 1 :])
                parts.append((there, source, view))
        begin += 1 if new else tensor.shape[dim]
    return parts


def _views(func: Callable[..., Any], args: Sequence[Any]) -> list[list[_Part]] | None:
    """Of each tensor that a view makes (a slice, a transposition) its one part; None if it is none."""
    if func is _ATEN._unsafe_view.default:
        func = _ATEN.view.default
    schema: Any = getattr(func, "_schema", None)
    of = args[0] if args else None
    if not isinstance(of, Traced) or of._parts is None or len(of._parts) != 1:
        return None
    if schema.returns[0].alias_info is None:
        return None
    _, source, view = of._parts[0]
    try:
        made = func(view, *args[1:])
    except RuntimeError:  # what lies so in the source has no such view
        return None
    views = made if isinstance(made, list | tuple) else [made]
    return [[((0,) * x.dim(), source, x)] for x in views]
