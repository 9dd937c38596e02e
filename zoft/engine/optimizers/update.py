"""The tuned weights of a run, and how an update reaches them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor, nn

from zoft.models.storage.safetensors import Reader, Stored


@dataclass(frozen=True, slots=True)
class Tuned:
    """One tuned parameter: its name, its id in the directions' address, whether it decays."""

    name: str
    parameter: nn.Parameter
    param: int
    decays: bool

    @property
    def data(self) -> Tensor:
        return self.parameter.detach()


def tuned_weights(
    parameters: Mapping[str, nn.Parameter], ids: Mapping[str, int], decaying: set[str]
) -> list[Tuned]:
    return [Tuned(name, p, ids[name], name in decaying) for name, p in parameters.items()]


class Update(Protocol):
    """One step of an update rule, as a function of a weight: what it does depends on nothing that may
    change later, so it may be applied when and where the weight is at hand."""

    def __call__(self, tuned: Tuned, weight: Tensor, state: Sequence[Tensor]) -> None:
        """Move `weight`, the values of `tuned`, and what the rule keeps of it (`Weights.keep`)."""


class Weights(Protocol):
    """Where the tuned weights are, and how an update reaches them. `names`: what is kept of each."""

    names: tuple[str, ...]

    def __iter__(self) -> Iterator[Tuned]:
        """All of them, in model order."""

    def keep(self, *names: str) -> None:
        """Keep float32 tensors of these names beside every weight, zero at first."""

    def apply(self, update: Update) -> None:
        """Every weight moves by this before it is read again."""

    def visits(self) -> Iterator[Mapping[str, Tensor]]:
        """All weights, moved by every update, some at a time: what is kept of those that are in place
        until the next is asked for, named `weight/name`."""

    def load(self, stored: Mapping[str, Stored]) -> None:
        """Take what `visits` gave from files. Raises KeyError for a state of another rule."""


class Resident:
    """Tuned weights that stay on their device: an update moves them at once."""

    def __init__(self, tuned: Sequence[Tuned]) -> None:
        self.tuned = list(tuned)
        self.names: tuple[str, ...] = ()
        self.state: dict[str, tuple[Tensor, ...]] = {}

    def __iter__(self) -> Iterator[Tuned]:
        return iter(self.tuned)

    def keep(self, *names: str) -> None:
        self.names = names
        self.state = {
            tuned.name: tuple(torch.zeros_like(tuned.data, dtype=torch.float32) for _ in names)
            for tuned in self.tuned
        }

    def apply(self, update: Update) -> None:
        for tuned in self.tuned:
            update(tuned, tuned.data, self.state.get(tuned.name, ()))

    def visits(self) -> Iterator[Mapping[str, Tensor]]:
        yield {
            f"{weight}/{name}": tensor
            for weight, kept in self.state.items()
            for name, tensor in zip(self.names, kept, strict=True)
        }

    def load(self, stored: Mapping[str, Stored]) -> None:
        with Reader() as reader:
            for kept in self.visits():
                for name, tensor in kept.items():
                    own = (
                        tensor
                        if tensor.device.type == "cpu"
                        else torch.empty_like(tensor, device="cpu")
                    )
                    reader.read(stored[name], own)
                    tensor.copy_(own)
