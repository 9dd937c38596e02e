"""A stand-in accelerator, so that what zoft does on one is run without one: see `card.py`.

`with standin() as card:` makes it the device that torch sees; `device=standin` asks for it in a recipe.
"""

from __future__ import annotations

import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any

import pytest
import torch
from torch.utils import backend_registration
from torch.utils._device import _device_constructors

from support.accelerator.card import Card
from support.accelerator.kernels import Launched
from support.accelerator.module import Module
from support.accelerator.tensor import KIND, CardTensor, Open, run
from zoft.engine.kernels import dispatch

__all__ = ["KIND", "Card", "CardTensor", "standin"]


@contextmanager
def standin(kernels: Any = None, **settings: Any) -> Iterator[Card]:
    """Have torch see one card: `settings` are `Card`'s, `kernels` its sweeps, by default the CPU's."""
    _register()
    launched = kernels or Launched()
    card = Card(**settings)
    choose = dispatch._kernels
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Open, "card", card)
        patch.setattr(dispatch, "_kernels", lambda kind: launched if kind == KIND else choose(kind))
        for owner, name, made in _replaced(card):
            patch.setattr(owner, name, made)
        try:
            yield card
        finally:
            card.streams.close()


@cache
def _register() -> Any:
    """Tell torch of the device: its name, its module, and that every operator goes to `run`."""
    _device_constructors()  # remembers functions, and must not remember those of `_replaced`
    backend_registration._setup_privateuseone_for_python_backend(KIND, backend_module=Module())
    library: Any = torch.library.Library("_", "IMPL")  # type: ignore[no-untyped-call]
    library.fallback(lambda func, *args, **kwargs: run(func, args, kwargs), "PrivateUse1")
    return library


def _replaced(card: Card) -> Iterator[tuple[Any, str, Any]]:
    """Functions of torch that take another way than its operators do, or other sums than the CPU."""

    def copied(original: Any) -> Any:
        def made(*args: Any, device: Any = None, **options: Any) -> Any:
            if device is None or torch.device(device).type != KIND:
                return original(*args, device=device, **options)
            return original(*args, **options).to(device)

        return made

    def counted(original: Any) -> Any:
        def made(*args: Any, device: Any = None, **options: Any) -> Any:
            if device is None or torch.device(device).type != KIND:
                return original(*args, device=device, **options)
            return card.wrap(original(*args, **options))

        return made

    def pinned(tensor: torch.Tensor) -> torch.Tensor:
        copy = tensor.clone()
        card.pinned[copy.data_ptr()] = copy.nbytes
        weakref.finalize(copy, card.pinned.pop, copy.data_ptr(), None)
        return copy

    attend = torch.nn.functional.scaled_dot_product_attention

    def attention(query: Any, *args: Any, **options: Any) -> Any:
        learns = torch.is_grad_enabled() and query.requires_grad
        if not isinstance(query, CardTensor) or learns:
            return attend(query, *args, **options)
        return card.run(
            torch.ops.aten.scaled_dot_product_attention.default, (query, *args), options
        )

    plain = torch._C.TensorBase.data

    def set_data(tensor: Any, other: Any) -> None:
        """As between a CPU and a GPU, whose tensors are of one type."""
        if isinstance(other, CardTensor):
            learns = isinstance(tensor, torch.nn.Parameter)
            made = torch.nn.Parameter(other, tensor.requires_grad) if learns else other.detach()
            torch.utils.swap_tensors(tensor, made)  # type: ignore[no-untyped-call]
        else:
            plain.__set__(tensor, other)  # type: ignore[attr-defined]

    yield torch.Tensor, "data", property(plain.__get__, set_data)  # type: ignore[attr-defined]
    # Its tensors have no version, and a wrapper around one cannot do without.
    yield torch, "inference_mode", torch.no_grad
    yield torch.Tensor, "pin_memory", pinned
    yield torch, "tensor", copied(torch.tensor)
    yield torch, "as_tensor", copied(torch.as_tensor)
    yield torch, "arange", counted(torch.arange)
    yield torch.nn.functional, "scaled_dot_product_attention", attention
