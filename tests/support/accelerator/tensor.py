"""Tensors of the stand-in accelerator: each holds a CPU tensor, and every operator goes to the card."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

KIND = "standin"


class Open:
    """The card that operators go to; None: none is here, and nothing may run."""

    card: Any = None


def run(func: Any, args: Sequence[Any], kwargs: dict[str, Any]) -> Any:
    if Open.card is None:
        raise RuntimeError(f"{func}: no stand-in accelerator is here")
    return Open.card.run(func, args, kwargs)


class CardTensor(Tensor):
    """A tensor on the card. `held` has its numbers, `allocation` is the memory that it lies in."""

    held: Tensor
    allocation: Any

    @staticmethod
    def __new__(cls, held: Tensor, allocation: Any) -> CardTensor:
        made: CardTensor = Tensor._make_wrapper_subclass(
            cls,
            held.shape,
            strides=held.stride(),
            storage_offset=held.storage_offset(),
            dtype=held.dtype,
            device=torch.device(KIND, 0),
        )
        made.held, made.allocation = held, allocation
        return made

    __torch_function__ = torch._C._disabled_torch_function_impl  # type: ignore[assignment]

    @classmethod
    def __torch_dispatch__(  # type: ignore[override]
        cls, func: Any, _types: Any, args: Sequence[Any] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        return run(func, args, kwargs or {})

    @property
    def data(self) -> Tensor:
        return self.detach()

    @data.setter
    def data(self, other: Tensor) -> None:
        assert isinstance(other, CardTensor)
        torch._C.TensorBase.data.__set__(self, other)  # type: ignore[attr-defined]
        self.held, self.allocation = other.held, other.allocation

    def data_ptr(self) -> int:
        return self.held.data_ptr()

    def untyped_storage(self) -> torch.UntypedStorage:
        return self.held.untyped_storage()

    def tolist(self) -> Any:
        return self.cpu().tolist()

    def numpy(self, **_: Any) -> Any:
        raise TypeError(
            f"can't convert {KIND}:0 device type tensor to numpy: use Tensor.cpu() first"
        )

    def __repr__(self, *_: Any, **__: Any) -> str:  # type: ignore[override]
        return f"CardTensor({self.held!r})"

    def __deepcopy__(self, memo: dict[int, Any]) -> Any:
        copied: Any = self.detach().clone()
        if isinstance(self, torch.nn.Parameter):
            copied = torch.nn.Parameter(copied, self.requires_grad)
        memo[id(self)] = copied
        return copied


def mapped(change: Callable[[Any], Any], tree: Any) -> Any:
    """The arguments of an operator with every leaf changed."""
    if isinstance(tree, list | tuple) and not isinstance(tree, torch.Size):
        return type(tree)(mapped(change, x) for x in tree)
    if isinstance(tree, dict):
        return {key: mapped(change, x) for key, x in tree.items()}
    return change(tree)


def tensors_in(tree: Any) -> Iterator[Tensor]:
    if isinstance(tree, Tensor):
        yield tree
    elif isinstance(tree, list | tuple):
        for x in tree:
            yield from tensors_in(x)
    elif isinstance(tree, dict):
        yield from tensors_in(list(tree.values()))


def unwrapped(leaf: Any) -> Any:
    """What stands for it on the CPU."""
    if isinstance(leaf, CardTensor):
        return leaf.held
    if isinstance(leaf, torch.device) and leaf.type == KIND:
        return torch.device("cpu")
    return leaf


def storage(tensor: Tensor) -> int:
    """The same for tensors that lie in the same memory."""
    return int(tensor.untyped_storage()._cdata)
