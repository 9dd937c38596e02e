"""Products with W + scale * u v^T that never build it: x W^T + scale (x v) u^T.

In float32, (x v) u^T is written first and the product accumulated upon it. In a lower type the result
would be rounded twice; there, [x, scale (x v)] is multiplied with [W, u]: the same sum inside the one
product, which accumulates in float32 and rounds once. The weight is copied for that, as the cast from
float32 does anyway. Where runs have directions of their own, u has a column for each of at most PRODUCT
of them, and x v stands in its own, beside zeros.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from zoft.engine.kernels import reference
from zoft.engine.kernels.dispatch import kernels_for
from zoft.engine.probe.leaves import Slot
from zoft.engine.probe.perturbed import Values
from zoft.engine.probe.rows import PRODUCT, Rows
from zoft.engine.probe.scratch import Scratch
from zoft.system.philox import PURPOSE_U, PURPOSE_V


class Rank1Products:
    """Shares the work on an input between the matrices that read it one after the other."""

    def __init__(self, values: Values, device: torch.device) -> None:
        self.values = values
        self._scratch = Scratch(device)
        self._input: Tensor | None = None
        self._key: tuple[tuple[int, ...], int] = ((), 0)
        self._rows: Rows | None = None
        self._s: Tensor | None = None
        self._padded: Tensor | None = None

    def forget(self) -> None:
        """Drop the last input: the pass is over."""
        self._input = self._s = self._padded = None
        self._scratch.release(0)

    def product(
        self,
        source: Tensor,
        x: Tensor,
        slot: Slot,
        twins: Sequence[int],
        bias: Tensor | None,
        *,
        transposed: bool = False,
        part: slice | None = None,
    ) -> Tensor:
        """x (N, C) times the perturbed matrix (O, C) of `slot` (or its rows `part`), plus bias.

        x is `source` seen as vectors, `twins` the ids of the matrices that read it, in order; bias
        is (runs, O) or (1, O) float32. A transposed matrix is stored (C, O), as GPT-2's are. Returns
        (N, O) in x's type.
        """
        values, rows = self.values, self.values.rows
        assert slot.param is not None
        kernels = kernels_for(x.device)
        self._project(source, x, twins, transposed)
        assert self._s is not None
        s = self._s[self._key[0].index(slot.param)]
        weight = slot.parameter.detach()
        u = values.factors.v(slot.param) if transposed else values.factors.u(slot.param)
        if part is not None:
            weight, u = weight[part], u[:, part].contiguous()
        matrix = weight.t() if transposed else weight  # (O, C)
        y = torch.empty((x.shape[0], matrix.shape[0]), dtype=x.dtype, device=x.device)
        mark = values.scratch.mark()
        if x.dtype == torch.float32:
            kernels.prefill(y, s, u, rows.which_tensor, bias)
            cast = values.unmoved(weight, torch.float32)
            y.addmm_(x, cast if transposed else cast.t())
            values.scratch.release(mark)
            return y
        assert self._padded is not None
        count, columns = x.shape[0] // len(rows), x.shape[1]
        shape = (matrix.shape[0], columns + PRODUCT)
        wide = values.scratch.take(shape[::-1] if transposed else shape, x.dtype)
        wide = wide.t() if transposed else wide
        widen = reference.widen if transposed else kernels.widen
        for some in rows.products:
            padded, amounts, out, factor = self._padded, s, y, u
            if len(rows.products) > 1:
                mine = slice(some.begin * count, some.end * count)
                padded, amounts, out = padded[mine], s[mine], y[mine]
            if some.directions != tuple(range(len(u))):  # a micro-batch has some of the examples
                factor = u[list(some.directions)]
            kernels.spread(padded, amounts, some.which, columns)
            widen(wide, matrix, factor)
            torch.mm(padded, wide.t(), out=out)
        values.scratch.release(mark)
        if bias is None:
            return y
        return (y.view(len(bias), -1, y.shape[1]) + bias[:, None]).view_as(y).to(y.dtype)

    def _project(self, source: Tensor, x: Tensor, twins: Sequence[int], transposed: bool) -> None:
        """scale * (x v) of all twins at once, and the padded copy of x that low precision needs."""
        key = (tuple(twins), source._version)
        values = self.values
        # A module that runs for each run may be handed one and the same input for all of them.
        if self._input is source and self._key == key and self._rows is values.rows:
            return
        self._scratch.release(0)
        self._s = self._scratch.take((len(twins), x.shape[0]), torch.float32)
        low = x.dtype != torch.float32
        shape = (x.shape[0], x.shape[1] + PRODUCT)
        self._padded = self._scratch.take(shape, x.dtype) if low else None
        purpose = PURPOSE_U if transposed else PURPOSE_V
        kernels_for(x.device).project(
            self._s,
            x,
            values.factors.side_by_side(twins, purpose),
            values.rows.which_tensor,
            values.rows.scales_tensor,
            self._padded,
        )
        self._input, self._key, self._rows = source, key, values.rows
