"""The modules that read tuned parameters: found on one forward pass, not guessed from names."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from zoft.engine.probe.readers import find_readers
from zoft.errors import RecipeError


@dataclass(frozen=True, slots=True)
class Slot:
    """Where a reader finds a parameter: attribute `name` of `owner`. `param` is None if frozen."""

    owner: nn.Module
    name: str
    parameter: nn.Parameter
    param: int | None


@dataclass(frozen=True, slots=True)
class Leaf:
    """A module that reads parameters, with the slots it reads.

    `twins` are the leaves, itself among them, that read the same input one after the other (the
    projections of an attention block): numbers in the list of leaves.
    """

    module: nn.Module
    slots: tuple[Slot, ...]
    twins: tuple[int, ...]

    def own(self, name: str) -> Slot | None:
        return next((s for s in self.slots if s.owner is self.module and s.name == name), None)

    @property
    def only_own(self) -> bool:
        return all(slot.owner is self.module for slot in self.slots)

    @property
    def only_vectors(self) -> bool:
        """Matrices of one row or column (IA3's factors) count as vectors."""
        return all(p.ndim < 2 or p.numel() == max(p.shape) for p in self._parameters)

    @property
    def only_contained(self) -> bool:
        """Whether all lie in containers inside the module: vectors that peft's layers multiply what the
        module below them computes by, minding types themselves."""
        return all(slot.owner is not self.module for slot in self.slots)

    @property
    def _parameters(self) -> list[nn.Parameter]:
        return [slot.parameter for slot in self.slots]

    def put_back(self) -> None:
        """Every parameter where it belongs, whatever stands there now."""
        for slot in self.slots:
            slot.owner._parameters[slot.name] = slot.parameter


def find_leaves(
    model: nn.Module,
    tuned: Mapping[str, nn.Parameter],
    ids: Mapping[str, int],
    compute_dtype: torch.dtype,
    example: Tensor,
) -> list[Leaf]:
    """Every module that reads a tuned weight, or a frozen one that is stored in another dtype.

    Raises RecipeError if a tuned parameter is never read.
    """
    number = {parameter: ids[name] for name, parameter in tuned.items()}
    needed = [
        p
        for p in model.parameters()
        if p in number or (p.is_floating_point() and p.dtype != compute_dtype)
    ]
    readers, inputs = find_readers(needed, lambda: model(input_ids=example, use_cache=False))
    lost = [name for name, parameter in tuned.items() if parameter not in readers]
    if lost:
        raise RecipeError(
            f"no forward pass reads {', '.join(lost[:3])}{' …' if len(lost) > 3 else ''} "
            f"({len(lost)} tuned parameters): name them in tune.exclude"
        )
    owners: dict[nn.Parameter, Slot] = {}
    for module in model.modules():
        for name, parameter in module.named_parameters(recurse=False):
            owners.setdefault(parameter, Slot(module, name, parameter, number.get(parameter)))
    slots: dict[nn.Module, list[Slot]] = {}
    for parameter in needed:
        for reader in readers.get(parameter, []):
            own = next(
                (n for n, p in reader.named_parameters(recurse=False) if p is parameter), None
            )
            slot = Slot(reader, own, parameter, number.get(parameter)) if own else None
            slots.setdefault(reader, []).append(slot or owners[parameter])
    modules = list(slots)
    return [Leaf(m, tuple(slots[m]), _twins(i, modules, inputs)) for i, m in enumerate(modules)]


def _twins(
    i: int, modules: list[nn.Module], inputs: dict[nn.Module, Tensor | None]
) -> tuple[int, ...]:
    mine = inputs.get(modules[i])
    if mine is None:
        return (i,)
    return tuple(j for j, other in enumerate(modules) if inputs.get(other) is mine)
