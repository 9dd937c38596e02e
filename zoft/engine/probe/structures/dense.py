"""Dense directions: a number of its own for every element, so that a pass works on perturbed copies."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from zoft.engine.kernels.dispatch import kernels_for
from zoft.engine.kernels.numerics.exact_sum import DirectionSum, Rounding
from zoft.engine.probe.directions import Direction, MatrixBytes, OpenProbe
from zoft.engine.probe.leaves import Leaf, ParameterRef
from zoft.recipe.sections.optimizers.rule import AdamConstants


@dataclass(frozen=True, slots=True)
class Dense:
    """Covers every parameter."""

    def covers(self, shape: Sequence[int]) -> bool:
        del shape
        return True

    def values(self, z: Direction, weight: Tensor, param: int) -> Tensor:
        out = torch.empty(weight.shape, dtype=torch.float32, device=weight.device)
        z.perturb(out, torch.zeros_like(out), param, 1.0)
        return out

    def perturbation(self, probe: OpenProbe, leaves: Sequence[Leaf]) -> DensePerturbation:
        del leaves
        return DensePerturbation(probe)

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
        kernels_for(weight.device).update_dense(
            weight, sums, param=param, decay=decay, rounding=rounding, adam=adam, moments=moments
        )

    def matrix_bytes(
        self, rows: int, columns: int, *, stored: int, computed: int, copies: int
    ) -> MatrixBytes:
        del stored
        return MatrixBytes(copy=rows * columns * computed * copies)


class DensePerturbation:
    """Parameters as they are, cast, or perturbed in a copy, run by run."""

    def __init__(self, probe: OpenProbe) -> None:
        self.probe = probe
        # The type in which each parameter last met its inputs while a probe was open.
        self.delivered: dict[nn.Parameter, torch.dtype] = {}

    def draw(self) -> None:
        """Nothing to do: kernels draw as they perturb."""

    def release(self) -> None:
        """Nothing to do: nothing is kept."""

    def materialise(
        self, ref: ParameterRef, dtype: torch.dtype, run: int, part: slice | None
    ) -> Tensor:
        """The parameter itself or its cast where `run` does not perturb it, else a copy in scratch. One
        that wants a gradient gets it."""
        if torch.is_grad_enabled() and ref.parameter.requires_grad:
            return (ref.parameter if part is None else ref.parameter[part]).to(dtype)
        weight = ref.parameter.detach() if part is None else ref.parameter.detach()[part]
        scale = self.probe.rows.scales[run]
        if not self.probe.is_tuned(ref) or scale == 0.0:
            return self.probe.cast(weight, dtype)
        assert ref.param is not None
        out = self.probe.scratch.take(weight.shape, dtype)
        self.delivered[ref.parameter] = dtype
        offset = part.start * weight[0].numel() if part else 0
        self.probe.direction_of(run).perturb(out, weight, ref.param, scale, offset)
        return out

    def lookup(self, ref: ParameterRef, ids: Tensor, dtype: torch.dtype) -> Tensor:
        """Perturbs these rows alone: one costs some hundred elements' work, the table millions."""
        weight, rows = ref.parameter.detach(), self.probe.rows
        if not self.probe.is_tuned(ref):
            return weight[ids.reshape(-1)].to(dtype)
        assert ref.param is not None
        out = torch.empty((ids.numel(), weight.shape[1]), dtype=dtype, device=weight.device)
        for run, (mine, found) in enumerate(zip(ids, torch.chunk(out, len(rows)), strict=True)):
            z = self.probe.direction_of(run)
            z.perturb_rows(found, weight, mine.contiguous(), ref.param, rows.scales[run])
        return out

    def product(self, leaf: Leaf, x: Tensor, bias: Tensor | None, part: slice | None) -> Tensor:
        """One product where all runs have the same weight and bias, else one for each run."""
        probe, rows = self.probe, self.probe.rows
        if len(rows) == 1 or not any(map(probe.is_tuned, (leaf.weight, leaf.bias))):
            matrix = self._matrix(leaf, x.dtype, 0, part)
            return _linear(x, matrix.t() if leaf.is_transposed else matrix, bias)
        scales, weight = rows.scales, leaf.weight
        paired = len(scales) == 2 and scales[0] == -scales[1] and part is None
        if weight is not None and probe.is_tuned(weight) and paired:
            matrices = list(self._pair(weight, x.dtype))
        else:
            matrices = [self._matrix(leaf, x.dtype, run, part) for run in range(len(rows))]
        if leaf.is_transposed:
            matrices = [matrix.t() for matrix in matrices]
        y = _linear_by_run(rows.vectors(x), matrices, bias)
        return y.view(*x.shape[:-1], y.shape[-1])

    def logits(self, ref: ParameterRef, hidden: Tensor, vocab: Tensor) -> Tensor:
        runs = len(self.probe.rows)
        tables = self.lookup(ref, vocab.expand(runs, -1), torch.float32)
        parts = zip(torch.chunk(hidden, runs), torch.chunk(tables, runs), strict=True)
        return torch.cat([nn.functional.linear(mine, table) for mine, table in parts])

    def _matrix(self, leaf: Leaf, dtype: torch.dtype, run: int, part: slice | None) -> Tensor:
        """The weight of a linear layer; one that is not among its `refs` is frozen and needs no cast."""
        if leaf.weight is not None:
            return self.materialise(leaf.weight, dtype, run, part)
        frozen = leaf.module.weight
        assert isinstance(frozen, Tensor)
        return frozen.detach() if part is None else frozen.detach()[part]

    def _pair(self, ref: ParameterRef, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """The parameter as the two runs of a paired probe see it, in one sweep."""
        assert ref.param is not None
        weight = ref.parameter.detach()
        self.delivered[ref.parameter] = dtype
        plus, minus = (self.probe.scratch.take(weight.shape, dtype) for _ in range(2))
        z, scale = self.probe.direction_of(0), self.probe.rows.scales[0]
        z.perturb_pair(plus, minus, weight, ref.param, scale)
        return plus, minus


def _linear(x: Tensor, matrix: Tensor, bias: Tensor | None) -> Tensor:
    """x (..., C) times matrix (O, C), plus bias (1, O) in its own type."""
    if bias is None or bias.dtype == x.dtype:
        return nn.functional.linear(x, matrix, None if bias is None else bias[0])
    y = nn.functional.linear(x, matrix)
    return (y + bias[0]).to(y.dtype)


def _linear_by_run(x: Tensor, matrices: Sequence[Tensor], bias: Tensor | None) -> Tensor:
    """Each run's vectors of x (N, C) times its own matrix (O, C), plus bias (runs or 1, O)."""
    runs = len(matrices)
    y = torch.empty((x.shape[0], matrices[0].shape[0]), dtype=x.dtype, device=x.device)
    parts = zip(torch.chunk(x, runs), matrices, torch.chunk(y, runs), strict=True)
    for mine, matrix, out in parts:
        torch.mm(mine, matrix.t(), out=out)
    return y if bias is None else add_bias(y, bias)


def add_bias(y: Tensor, bias: Tensor) -> Tensor:
    """y (N, O) plus bias, (runs, O) or (1, O) float32, rounded once to y's type."""
    return (y.view(len(bias), -1, y.shape[1]) + bias[:, None]).view_as(y).to(y.dtype)
