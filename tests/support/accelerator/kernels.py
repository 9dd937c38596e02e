"""The CPU's compiled sweeps as kernels of the stand-in: launched on pointers of the card."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from support.accelerator.tensor import CardTensor, Open, mapped, tensors_in, unwrapped
from zoft.engine.kernels.cpu import sweeps


class Launched:
    """Every sweep by its name. Raises ValueError, as Triton does, for a tensor of the host."""

    def __getattr__(self, name: str) -> Callable[..., None]:
        sweep = getattr(sweeps, name)

        def launch(*args: Any, **kwargs: Any) -> None:
            tensors = list(tensors_in([*args, kwargs]))
            if not all(isinstance(x, CardTensor) for x in tensors):
                raise ValueError(f"Pointer argument of {name} cannot be accessed from the card")
            written = [*args[: 2 if name == "perturb_pair" else 1], *kwargs.get("moments", ())]
            written += [kwargs["padded"]] if kwargs.get("padded") is not None else []
            read = [x for x in tensors if not any(x is y for y in written)]
            with Open.card.streams.at_once(read, written):
                sweep(*mapped(unwrapped, list(args)), **mapped(unwrapped, kwargs))

        return launch
