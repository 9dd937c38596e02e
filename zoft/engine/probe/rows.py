"""Which direction and which scale each row of a forward pass has."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from zoft.errors import RecipeError
from zoft.system.accelerator import send

GROUP_DIRECTIONS = 16  # at most so many different directions in one matrix product


class MixedRows(RecipeError):
    """A module's input whose rows cannot be told apart."""

    @classmethod
    def of(cls, found: int, rows: int) -> MixedRows:
        """`found` are the input's."""
        return cls(
            f"a tuned module is handed {found} rows where the pass has {rows}, and cannot tell its "
            "examples apart: set optimizer.scope=batch, or name its weights in tune.exclude"
        )


@dataclass(frozen=True, slots=True)
class RowGroup:
    """The runs [begin, end) of a pass, the directions in them, and each run's place among these."""

    begin: int
    end: int
    directions: tuple[int, ...]
    which: Tensor


@dataclass(frozen=True)
class RowAssignment:
    """`size` rows in equal runs: run i has the `which[i]`-th of the drawn directions at `scales[i]`.

    A probe of one sign is one run, a paired one two, per-example directions make a run of each example
    and sign. Everything that flows through the model has its rows in this order, so that of N vectors
    (rows times tokens) the first N / R belong to the first run. The tensors are `which` and `scales`,
    int64 and float32, on the model's device.
    """

    size: int
    which: tuple[int, ...]
    scales: tuple[float, ...]
    which_tensor: Tensor
    scales_tensor: Tensor

    def __len__(self) -> int:
        return len(self.which)

    def vectors(self, x: Tensor) -> Tensor:
        """x (rows or rows * tokens, ..., C) as (N, C), contiguous. Raises MixedRows if rows are not
        whole."""
        if len(self) > 1 and x.shape[0] % self.size:
            raise MixedRows.of(x.shape[0], self.size)
        # Of one transposed row, reshape alone would give a view that kernels cannot read.
        return x.reshape(-1, x.shape[-1]).contiguous()

    def one(self, i: int) -> RowAssignment:
        """The rows of run i alone."""
        return assign_rows(
            self.size // len(self),
            self.which[i : i + 1],
            self.scales[i : i + 1],
            self.which_tensor.device,
        )

    @cached_property
    def groups(self) -> list[RowGroup]:
        """Consecutive runs with at most GROUP_DIRECTIONS different directions."""
        if len(set(self.which)) <= GROUP_DIRECTIONS:
            return [self._group(0, len(self))]
        groups, begin, seen = [], 0, set[int]()
        for i, number in enumerate(self.which):
            if number not in seen and len(seen) == GROUP_DIRECTIONS:
                groups.append(self._group(begin, i))
                begin, seen = i, set()
            seen.add(number)
        return [*groups, self._group(begin, len(self))]

    def _group(self, begin: int, end: int) -> RowGroup:
        directions = tuple(dict.fromkeys(self.which[begin:end]))
        places = {number: place for place, number in enumerate(directions)}
        local = [places[number] for number in self.which[begin:end]]
        return RowGroup(begin, end, directions, send(torch.tensor(local), self.which_tensor.device))


def assign_rows(
    size: int, which: Sequence[int], scales: Sequence[float], device: torch.device
) -> RowAssignment:
    """`size` rows in len(which) equal runs, with their tensors on `device`."""
    return RowAssignment(
        size,
        tuple(which),
        tuple(scales),
        send(torch.tensor(which, dtype=torch.int64), device),
        send(torch.tensor(scales, dtype=torch.float32), device),
    )
