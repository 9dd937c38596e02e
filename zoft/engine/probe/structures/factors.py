"""The factors u and v of a step's rank-1 directions z = u v^T, drawn for all matrices at once."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from zoft.engine.kernels.dispatch import kernels_for
from zoft.engine.probe.leaves import Leaf
from zoft.system.accelerator import send
from zoft.system.philox import PURPOSE_U, PURPOSE_V

Factor = tuple[int, int, int]  # parameter's id, purpose, length
Group = Sequence[Factor]


class Factors:
    """Signs as int8, (n, length) for each factor, n directions; one kernel call fills them all.

    `groups` lists (param, purpose, length): the factors of a group have one length and lie side by
    side, so that they can be multiplied with one input together. A step's factors take n bytes per
    row and column of every matrix: 6 MB for a 135M model and 16 examples.
    """

    def __init__(self, groups: Sequence[Group], device: torch.device) -> None:
        self._starts: dict[tuple[int, int], tuple[int, int]] = {}
        self._total = 0
        for group in groups:
            for param, purpose, length in group:
                self._starts[param, purpose] = (self._total, length)
                self._total += length
        self._device = device
        self._signs = torch.empty(0, dtype=torch.int8, device=device)
        self._drawn: tuple[int, int, tuple[int, ...]] | None = None
        self._views: dict[tuple[Any, ...], Tensor] = {}  # making a view takes microseconds

    def draw(self, seed: int, step: int, ks: tuple[int, ...]) -> None:
        """Draw the factors of the directions `ks` of a step; nothing to do if they are there."""
        if self._drawn == (seed, step, ks) or not self._total:
            return
        self._drawn, n = None, len(ks)  # until they are all there
        if self._signs.numel() != n * self._total:
            self._signs = torch.empty(n * self._total, dtype=torch.int8, device=self._device)
            self._views.clear()
        table = torch.tensor([[*key, n_, n * at] for key, (at, n_) in self._starts.items()])
        kernels_for(self._device).signs(
            self._signs,
            send(table, self._device),
            seed=seed,
            step=step,
            ks=send(torch.tensor(ks), self._device),
        )
        self._drawn = (seed, step, ks)

    def u(self, param: int) -> Tensor:
        """(n, rows of the matrix)."""
        return self._one(param, PURPOSE_U)

    def v(self, param: int) -> Tensor:
        """(n, columns of the matrix)."""
        return self._one(param, PURPOSE_V)

    def stand_together(self, params: Sequence[int], purpose: int) -> bool:
        """Whether these factors lie side by side in this order."""
        places = [self._starts[param, purpose] for param in params]
        return all(after == (at + n, n) for (at, n), after in pairwise(places))

    def side_by_side(self, params: Sequence[int], purpose: int) -> Tensor:
        """The factors of a group, (len(params), n, length)."""
        key = (purpose, *params)
        if key not in self._views:
            first = self._one(params[0], purpose)
            begin, size = first.storage_offset(), len(params) * first.numel()
            assert self._one(params[-1], purpose).storage_offset() == begin + size - first.numel()
            stacked = self._signs[begin : begin + size].view(len(params), *first.shape)
            self._views[key] = stacked
        return self._views[key]

    def _one(self, param: int, purpose: int) -> Tensor:
        assert self._drawn is not None
        key = (purpose, param, -1)
        if key not in self._views:
            n = len(self._drawn[2])
            at, length = self._starts[param, purpose]
            self._views[key] = self._signs[n * at : n * (at + length)].view(n, length)
        return self._views[key]


def factors_of(param: int, shape: Sequence[int]) -> list[Factor]:
    """u and v of a matrix (R, C), or of each of E matrices (E, R, C) one after the other."""
    *matrices, rows, columns = shape
    count = math.prod(matrices)
    return [(param, PURPOSE_U, count * rows), (param, PURPOSE_V, count * columns)]


def factor_groups(leaves: Sequence[Leaf], covers: Callable[[Sequence[int]], bool]) -> list[Group]:
    """All factors of tuned parameters of shapes that `covers` accepts; the v of those that share an
    input together."""
    groups: list[Group] = []
    seen: set[tuple[int, int]] = set()
    for leaf in leaves:
        matrices: dict[int, list[Factor]] = {PURPOSE_U: [], PURPOSE_V: []}
        for ref in (ref for number in leaf.shares_input for ref in leaves[number].refs):
            if ref.param is None or not covers(ref.parameter.shape):
                continue
            for factor in factors_of(ref.param, ref.parameter.shape):
                if factor[:2] not in seen:
                    seen.add(factor[:2])
                    matrices[factor[1]].append(factor)
        groups.extend(group for group in matrices.values() if group)
    return groups
