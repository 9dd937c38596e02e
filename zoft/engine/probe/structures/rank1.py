"""Rank-1 directions: z of a matrix is u v^T, u and v signs, so that no perturbed copy is built. A tensor
of experts' matrices has a pair of vectors for each.

A product is x W^T + scale (x v) u^T. In float32, (x v) u^T is written first and the product accumulated
upon it. In a lower type the result would be rounded twice; there, [x, scale (x v)] is multiplied with
[W, u]: the same sum inside the one product, which accumulates in float32 and rounds once. The weight is
copied for that, as the cast from float32 does anyway. Where runs have directions of their own, u has a
column for each of at most GROUP_DIRECTIONS of them, and x v stands in its own, between zeros.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from zoft.engine.kernels import reference
from zoft.engine.kernels.dispatch import kernels_for
from zoft.engine.kernels.numerics.exact_sum import DirectionSum, Rounding
from zoft.engine.probe.directions import Direction, MatrixBytes, OpenProbe
from zoft.engine.probe.leaves import Leaf, ParameterRef
from zoft.engine.probe.rows import GROUP_DIRECTIONS, RowAssignment
from zoft.engine.probe.scratch import Scratch
from zoft.engine.probe.structures.dense import add_bias
from zoft.engine.probe.structures.factors import Factors, factor_groups, factors_of
from zoft.recipe.sections.optimizers.rule import AdamConstants
from zoft.system.philox import PURPOSE_U, PURPOSE_V

LEAST_OF_THREE = 16  # rows and columns of an expert's matrix; convolutions are 2 to 7 wide


@dataclass(frozen=True, slots=True)
class Rank1:
    """Covers matrices, and tensors (E, O, C) of E matrices."""

    def covers(self, shape: Sequence[int]) -> bool:
        # The kernel of a convolution has three dimensions as well, one of them its short width: there
        # a pair of vectors for each channel would be no less than z itself.
        return len(shape) == 2 or (len(shape) == 3 and min(shape[1:]) >= LEAST_OF_THREE)

    def values(self, z: Direction, weight: Tensor, param: int) -> Tensor:
        groups = [[factor] for factor in factors_of(param, weight.shape)]
        factors = Factors(groups, weight.device)
        factors.draw(z.directions.seed, z.step, (z.k,))
        matrices = math.prod(weight.shape[:-2])
        u, v = (x[0].view(matrices, -1).float() for x in (factors.u(param), factors.v(param)))
        return (u[:, :, None] * v[:, None]).view(weight.shape)

    def perturbation(self, probe: OpenProbe, leaves: Sequence[Leaf]) -> Rank1Perturbation:
        return Rank1Perturbation(probe, leaves, self.covers)

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
        kernels_for(weight.device).update_rank1(
            weight, sums, param=param, decay=decay, rounding=rounding, adam=adam, moments=moments
        )

    def matrix_bytes(
        self, rows: int, columns: int, *, stored: int, computed: int, copies: int
    ) -> MatrixBytes:
        """Signs are int8. In low precision the weight and its input are copied with
        GROUP_DIRECTIONS more columns. x v: for three projections of one input at most."""
        del copies
        if computed < 4:
            copy = rows * (columns + GROUP_DIRECTIONS) * computed
            padded = (max(rows, columns) + GROUP_DIRECTIONS) * computed
        else:
            copy, padded = 0 if stored == computed else rows * columns * computed, 0
        return MatrixBytes(factors=rows + columns, copy=copy, input=padded + 3 * 4)


class Rank1Perturbation:
    """Matrices with corrections inside their products; the work on an input is shared between the
    matrices that read it one after the other."""

    def __init__(
        self,
        probe: OpenProbe,
        leaves: Sequence[Leaf],
        covers: Callable[[Sequence[int]], bool],
    ) -> None:
        device = probe.rows.which_tensor.device
        self.probe, self.factors = probe, Factors(factor_groups(leaves, covers), device)
        self._shares_input = {leaf.module: self._sharing(leaf, leaves) for leaf in leaves}
        self._scratch = Scratch(device)
        self._input: Tensor | None = None
        self._key: tuple[Sequence[int], int] = ((), 0)
        self._rows: RowAssignment | None = None
        self._s: Tensor | None = None
        self._padded: Tensor | None = None

    def draw(self) -> None:
        """Draw the factors of all matrices, unless they are those of the probe before."""
        z = self.probe.direction
        assert z is not None
        self.factors.draw(z.directions.seed, z.step, self.probe.ks)

    def release(self) -> None:
        """Drop the last input."""
        self._input = self._s = self._padded = None
        self._scratch.release(0)

    def materialise(
        self, ref: ParameterRef, dtype: torch.dtype, run: int, part: slice | None
    ) -> Tensor:
        """W + scale * u v^T, matrix by matrix, for a module that is no linear layer."""
        whole = ref.parameter.detach()
        weight = whole if part is None else whole[part]
        rows, scale = self.probe.rows, self.probe.rows.scales[run]
        if scale == 0.0:
            return self.probe.cast(weight, dtype)
        matrices = math.prod(whole.shape[:-2])
        u, v = (factor[rows.which[run]].view(matrices, -1) for factor in self._factors(ref))
        if part is not None:
            u, v = (u[:, part], v) if whole.ndim == 2 else (u[part], v[part])
        out = self.probe.scratch.take(weight.shape, dtype)
        each = (x.view(-1, *whole.shape[-2:]) for x in (out, weight))
        for made, matrix, rows_, columns in zip(*each, u.float(), v.float(), strict=True):
            made.copy_(torch.addr(matrix.float(), rows_, columns, alpha=scale))
        return out

    def lookup(self, ref: ParameterRef, ids: Tensor, dtype: torch.dtype) -> Tensor:
        """W[ids] + scale * u[ids] v^T."""
        weight, rows = ref.parameter.detach(), self.probe.rows
        u, v = self._factors(ref)
        which, scales = rows.which_tensor[:, None], rows.scales_tensor[:, None]
        found = weight[ids].float()
        found += (scales * u[which, ids])[..., None] * v[which]
        return found.view(-1, weight.shape[1]).to(dtype)

    def logits(self, ref: ParameterRef, hidden: Tensor, vocab: Tensor) -> Tensor:
        """hidden W[vocab]^T + scale (hidden v) u[vocab]^T."""
        rows = self.probe.rows
        u, v = self._factors(ref)
        count = hidden.shape[0] // len(rows)
        which = rows.which_tensor.repeat_interleave(count)
        amount = (hidden * v[which]).sum(-1) * rows.scales_tensor.repeat_interleave(count)
        logits = hidden @ ref.parameter.detach()[vocab].float().t()
        logits += amount[:, None] * u[which[:, None], vocab]
        return logits

    def product(self, leaf: Leaf, x: Tensor, bias: Tensor | None, part: slice | None) -> Tensor:
        """See the module's docstring."""
        ref, transposed = leaf.weight, leaf.is_transposed
        assert ref is not None
        vectors = self.probe.rows.vectors(x)
        s = self._project(x, vectors, leaf)
        weight = ref.parameter.detach()
        u, v = self._factors(ref)
        u = v if transposed else u  # the factor of the outputs
        if part is not None:
            weight, u = weight[part], u[:, part].contiguous()
        matrix = weight.t() if transposed else weight  # (O, C)
        y = torch.empty((vectors.shape[0], matrix.shape[0]), dtype=x.dtype, device=x.device)
        mark = self.probe.scratch.mark()
        if x.dtype == torch.float32:
            kernels_for(x.device).prefill(y, s, u, self.probe.rows.which_tensor, bias)
            cast = self.probe.cast(weight, torch.float32)
            y.addmm_(vectors, cast if transposed else cast.t())
        else:
            self._widened_product(y, s, matrix, u, transposed)
            y = y if bias is None else add_bias(y, bias)
        self.probe.scratch.release(mark)
        return y.view(*x.shape[:-1], y.shape[-1])

    def _factors(self, ref: ParameterRef) -> tuple[Tensor, Tensor]:
        """u (directions, rows) and v (directions, columns) of a matrix."""
        assert ref.param is not None
        return self.factors.u(ref.param), self.factors.v(ref.param)

    def _widened_product(
        self, y: Tensor, s: Tensor, matrix: Tensor, u: Tensor, transposed: bool
    ) -> None:
        """y (N, O) = [x, s] [W, u]^T in low precision; x is in `_padded` already."""
        assert self._padded is not None
        kernels, rows, columns = kernels_for(y.device), self.probe.rows, matrix.shape[1]
        count = y.shape[0] // len(rows)
        shape = (matrix.shape[0], columns + GROUP_DIRECTIONS)
        wide = self.probe.scratch.take(shape[::-1] if transposed else shape, y.dtype)
        wide = wide.t() if transposed else wide
        widen = reference.widen if transposed else kernels.widen
        for group in rows.groups:
            padded, amounts, out, factor = self._padded, s, y, u
            if len(rows.groups) > 1:
                mine = slice(group.begin * count, group.end * count)
                padded, amounts, out = padded[mine], s[mine], y[mine]
            if group.directions != tuple(range(len(u))):  # a micro-batch has some of the examples
                factor = u[list(group.directions)]
            kernels.spread(padded, amounts, group.which, columns)
            widen(wide, matrix, factor)
            torch.mm(padded, wide.t(), out=out)

    def _project(self, source: Tensor, x: Tensor, leaf: Leaf) -> Tensor:
        """scale * (x v), (N,) float32, where x (N, C) is `source` as vectors.

        Computed at once for all matrices that share the input, with the padded copy of x that low
        precision needs.
        """
        assert leaf.weight is not None
        assert leaf.weight.param is not None
        params = self._shares_input[leaf.module]
        key = (params, source._version)
        # A module that runs for each run may be handed one and the same input for all of them.
        if (
            self._input is not source
            or self._key != key
            or self._rows is not self.probe.rows
            or self._s is None
        ):
            self._scratch.release(0)
            self._s = self._scratch.take((len(params), x.shape[0]), torch.float32)
            low = x.dtype != torch.float32
            shape = (x.shape[0], x.shape[1] + GROUP_DIRECTIONS)
            self._padded = self._scratch.take(shape, x.dtype) if low else None
            purpose = PURPOSE_U if leaf.is_transposed else PURPOSE_V
            kernels_for(x.device).project(
                self._s,
                x,
                self.factors.side_by_side(params, purpose),
                self.probe.rows.which_tensor,
                self.probe.rows.scales_tensor,
                self._padded,
            )
            self._input, self._key, self._rows = source, key, self.probe.rows
        return self._s[params.index(leaf.weight.param)]

    def _sharing(self, leaf: Leaf, leaves: Sequence[Leaf]) -> list[int]:
        """The ids of the matrices that read the leaf's input in a product of the same kind; its own
        alone where their factors do not lie side by side."""
        own = leaf.weight
        if not leaf.is_linear or own is None or own.param is None:
            return []
        found = []
        for other in (leaves[number] for number in leaf.shares_input):
            ref, same = other.weight, other.forward_type is leaf.forward_type
            if ref is not None and ref.param is not None and ref.parameter.ndim == 2 and same:
                found.append(ref.param)
        purpose = PURPOSE_U if leaf.is_transposed else PURPOSE_V
        # Another kind of module may have read the input between them, or two of them share a matrix.
        return found if self.factors.stand_together(found, purpose) else [own.param]
