"""Directions z of a run, never stored: functions of an address (seed, step, k); and their structure.

A structure is one object (see `structures/`): what z of a matrix looks like, how a forward pass computes
at W + scale * z, how an update adds such z to a weight, and how much memory that takes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from zoft.engine.kernels.dispatch import kernels_for
from zoft.engine.kernels.numerics.exact_sum import DirectionSum, Rounding, direction_sum
from zoft.engine.probe.leaves import Leaf, ParameterRef
from zoft.engine.probe.rows import RowAssignment
from zoft.engine.probe.scratch import Scratch
from zoft.recipe.sections.optimizers.rule import AdamConstants


@dataclass(frozen=True, slots=True)
class MatrixBytes:
    """Bytes that probes of a matrix need: the `factors` of one direction, the `copy` of the weight that
    a product works on, and `input` for each vector that it multiplies."""

    factors: int = 0
    copy: int = 0
    input: int = 0


class Structure(Protocol):
    """What directions look like: immutable, and the same for all models."""

    def covers(self, shape: Sequence[int]) -> bool:
        """Whether z of a parameter of that shape has this structure. Else, and for every vector, it is
        dense."""

    def values(self, z: Direction, weight: Tensor, param: int) -> Tensor:
        """z of a whole parameter that it covers, float32 of the weight's shape."""

    def perturbation(self, probe: OpenProbe, leaves: Sequence[Leaf]) -> Perturbation:
        """How the probes of the model with these leaves show the parameters that it covers."""

    def update(
        self,
        weight: Tensor,
        sums: Sequence[DirectionSum],
        *,
        param: int,
        decay: float,
        rounding: Rounding,
        adam: AdamConstants | None = None,
        moments: Sequence[Tensor] = (),
    ) -> None:
        """Move a weight that it covers along sums of directions; see `update_dense` in reference.py."""

    def matrix_bytes(
        self, rows: int, columns: int, *, stored: int, computed: int, copies: int
    ) -> MatrixBytes:
        """Memory for probes of a matrix whose elements take `stored` bytes, and `computed` bytes in a
        pass that runs `copies` scales at once."""


class Perturbation(Protocol):
    """The parameters of one model that a structure covers, as an open probe shows them.

    Tensors that it returns may be in the probe's scratch memory, valid until the caller releases it.
    """

    def draw(self) -> None:
        """Prepare for the probe's directions: it was opened."""

    def release(self) -> None:
        """Drop what was kept of the passes: the probe was closed."""

    def materialise(
        self, ref: ParameterRef, dtype: torch.dtype, run: int, part: slice | None
    ) -> Tensor:
        """The parameter (its rows `part`) at the scale and direction of `run`, in `dtype`."""

    def lookup(self, ref: ParameterRef, ids: Tensor, dtype: torch.dtype) -> Tensor:
        """Rows `ids` (runs, n) of a matrix (V, C), each as its run sees it: (runs * n, C)."""

    def product(self, leaf: Leaf, x: Tensor, bias: Tensor | None, part: slice | None) -> Tensor:
        """x (..., C) times the weight (O, C) of a linear layer (or its rows `part`), plus `bias`, which
        is (runs, O) or (1, O): (..., O) in x's type."""

    def logits(self, ref: ParameterRef, hidden: Tensor, vocab: Tensor) -> Tensor:
        """hidden (N, C) float32 times rows `vocab` (n,) of a matrix (V, C): (N, n) float32."""


@dataclass(frozen=True, slots=True)
class Directions:
    """All directions of a run: elements are +-1, or N(0, 1) with `gaussian`, drawn from `seed`."""

    seed: int
    gaussian: bool
    structure: Structure

    def at(self, step: int, k: int) -> Direction:
        """Direction `k` of a step."""
        return Direction(self, step, k)

    def total(
        self, addresses: Sequence[tuple[int, int]], coefficients: Sequence[float]
    ) -> DirectionSum:
        """The sum of the directions at `addresses`, (step, k) pairs, with these coefficients.

        Raises ValueError for too many or coefficients that are not finite.
        """
        return direction_sum(self.seed, self.gaussian, list(addresses), list(coefficients))


@dataclass(frozen=True, slots=True)
class Direction:
    """Direction `k` of a step: one number for each element of each parameter.

    Any slice of any parameter can be drawn at any time, in any order, with the same bits
    (docs/methods.md#random-numbers). The methods draw dense directions: `param` is the parameter's id,
    `scale` is in units of the weights.
    """

    directions: Directions
    step: int
    k: int

    def perturb(
        self, out: Tensor, weight: Tensor, param: int, scale: float, offset: int = 0
    ) -> None:
        """out = weight + scale * z, rounded once to out's dtype.

        Both contiguous; `offset` is the number of the slice's first element in the parameter.
        """
        kernels_for(weight.device).perturb(
            out, weight, offset=offset, seed=self.directions.seed, step=self.step, param=param,
            k=self.k, scale=scale, gaussian=self.directions.gaussian,
        )  # fmt: skip

    def perturb_pair(
        self, plus: Tensor, minus: Tensor, weight: Tensor, param: int, scale: float
    ) -> None:
        """plus = weight + scale * z, minus = weight - scale * z in one sweep."""
        kernels_for(weight.device).perturb_pair(
            plus, minus, weight, seed=self.directions.seed, step=self.step, param=param, k=self.k,
            scale=scale, gaussian=self.directions.gaussian,
        )  # fmt: skip

    def perturb_rows(
        self, out: Tensor, weight: Tensor, rows: Tensor, param: int, scale: float
    ) -> None:
        """out[i] = weight[rows[i]] + scale * z; weight (R, C), rows (n,) int64, out (n, C)."""
        kernels_for(weight.device).perturb_rows(
            out, weight, rows, seed=self.directions.seed, step=self.step, param=param, k=self.k,
            scale=scale, gaussian=self.directions.gaussian,
        )  # fmt: skip


@dataclass(slots=True)
class OpenProbe:
    """The probe that is open: its direction (None: theta itself), the numbers `ks` of the directions
    that its rows may have, the rows of the pass, and memory for what a pass makes."""

    scratch: Scratch
    rows: RowAssignment
    direction: Direction | None = None
    ks: tuple[int, ...] = ()

    def is_tuned(self, ref: ParameterRef | None) -> bool:
        """Whether the probe perturbs the parameter."""
        return ref is not None and ref.param is not None and self.direction is not None

    def direction_of(self, run: int) -> Direction:
        """The direction of a run of the pass's rows."""
        assert self.direction is not None
        return Direction(
            self.direction.directions, self.direction.step, self.ks[self.rows.which[run]]
        )

    def cast(self, weight: Tensor, dtype: torch.dtype) -> Tensor:
        """`weight`, or its cast in scratch."""
        if weight.dtype == dtype:
            return weight
        return self.scratch.take(weight.shape, dtype).copy_(weight)
