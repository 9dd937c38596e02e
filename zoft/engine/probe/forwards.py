"""The forward that stands in for a module's own while a probe is open."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map
from transformers.pytorch_utils import Conv1D

from zoft.engine.probe.factors import Factors
from zoft.engine.probe.leaves import Leaf, Slot
from zoft.engine.probe.perturbed import Values
from zoft.engine.probe.rank1 import Rank1Products
from zoft.engine.probe.rows import MixedRows, Rows
from zoft.system.philox import PURPOSE_U, PURPOSE_V

Road = Callable[..., Any]


class Roads:
    """Chooses a road by the kind of the module: a matrix product, a table, a norm, anything else.

    `leaves` are all leaves of the model in the order of their first run.
    """

    def __init__(self, leaves: Sequence[Leaf], values: Values) -> None:
        self.values, self.norms = values, find_norms(leaves)
        self.rank1 = Rank1Products(values, values.rows.which_tensor.device)
        self._twins = {leaf.module: _twins(leaf, leaves, values.factors) for leaf in leaves}

    def of(self, leaf: Leaf) -> Road:
        module, weight = leaf.module, leaf.own("weight")
        kind = getattr(type(module), "forward", None)
        if (
            weight is not None
            and leaf.only_own
            and kind is nn.Embedding.forward
            and isinstance(module, nn.Embedding)
            and module.max_norm is None
        ):
            return lambda ids: self._embedding(weight, ids)
        if leaf.only_own and kind in (nn.Linear.forward, Conv1D.forward):
            return lambda x: self.linear(leaf, x)
        if module in self.norms:
            return self._norm(leaf, module.forward)
        return self._swapped(leaf, module.forward)

    def _embedding(self, weight: Slot, ids: Tensor) -> Tensor:
        rows = self.values.rows
        if len(rows) > 1 and ids.shape[0] == 1:  # positions, alike in all rows
            ids = ids.expand(rows.size, *ids.shape[1:])
        flat = rows.vectors(ids[..., None]).view(len(rows), -1)
        found = self.values.looked_up(weight, flat, self.values.compute_dtype)
        return found.view(*ids.shape, -1)

    # -- products ---------------------------------------------------------------------------------

    def linear(self, leaf: Leaf, x: Tensor, part: slice | None = None) -> Tensor:
        """x (..., C) times the weight (its rows `part`), plus the bias, in x's type."""
        transposed = type(leaf.module).forward is Conv1D.forward
        weight, bias = leaf.own("weight"), leaf.own("bias")
        mark = self.values.scratch.mark()
        try:
            vector = self._bias(leaf, bias, part)
            if self.values.outer(weight):
                assert weight is not None
                vectors = self.values.rows.vectors(x)
                twins = self._twins[leaf.module]
                y = self.rank1.product(
                    x, vectors, weight, twins, vector, transposed=transposed, part=part
                )
            elif len(self.values.rows) == 1 or not any(map(self.values.moves, (weight, bias))):
                matrix = self._matrix(leaf, weight, x.dtype, part)
                return _product(x, matrix.t() if transposed else matrix, vector)
            else:
                y = self._by_run(leaf, self.values.rows.vectors(x), vector, transposed, part)
            return y.view(*x.shape[:-1], y.shape[-1])
        finally:
            self.values.scratch.release(mark)

    def _bias(self, leaf: Leaf, bias: Slot | None, part: slice | None) -> Tensor | None:
        """(runs or 1, O) in float32: a low-precision bias would lose most of its perturbation."""
        if bias is not None:
            found = self.values.vectors(bias)
        elif isinstance(frozen := getattr(leaf.module, "bias", None), Tensor):
            found = frozen.detach()[None]
        else:
            return None
        return found if part is None else found[:, part].contiguous()

    def _matrix(
        self, leaf: Leaf, weight: Slot | None, dtype: torch.dtype, part: slice | None, run: int = 0
    ) -> Tensor:
        if weight is not None:
            return self.values.whole(weight, dtype, run, part)
        frozen = leaf.module.weight
        assert isinstance(frozen, Tensor)
        return frozen.detach() if part is None else frozen.detach()[part]

    def _by_run(
        self, leaf: Leaf, x: Tensor, bias: Tensor | None, transposed: bool, part: slice | None
    ) -> Tensor:
        """Each run's vectors times its own copy of the weight."""
        values, weight = self.values, leaf.own("weight")
        scales = values.rows.scales
        paired = len(scales) == 2 and scales[0] == -scales[1] and part is None
        if values.moves(weight) and paired:
            assert weight is not None
            matrices = list(values.pair(weight, x.dtype))
        else:
            matrices = [
                self._matrix(leaf, weight, x.dtype, part, run) for run in range(len(scales))
            ]
        if transposed:
            matrices = [matrix.t() for matrix in matrices]
        y = torch.empty((x.shape[0], matrices[0].shape[0]), dtype=x.dtype, device=x.device)
        parts = zip(torch.chunk(x, len(scales)), matrices, torch.chunk(y, len(scales)), strict=True)
        for mine, matrix, out in parts:
            torch.mm(mine, matrix.t(), out=out)
        if bias is None:
            return y
        return (y.view(len(bias), -1, y.shape[1]) + bias[:, None]).view_as(y).to(y.dtype)

    # -- norms and anything else ------------------------------------------------------------------

    def _norm(self, leaf: Leaf, forward: Road) -> Road:
        """x_hat * (w + scale * z) in float32, each run with its own z, in one run of the norm: with a
        weight of one row for each row of x, if it can multiply by that, else without its parameters."""
        norm, swapped = self.norms[leaf.module], self._swapped(leaf, forward)
        weight, bias = leaf.own("weight"), leaf.own("bias")

        def run(x: Tensor) -> Tensor:
            values, rows = self.values, self.values.rows
            if len(rows) == 1 or not any(map(values.moves, leaf.slots)):
                return swapped(x)  # type: ignore[no-any-return]
            mark = values.scratch.mark()
            try:
                if norm.broadcasts and x.shape[0] == rows.size:
                    for slot in leaf.slots:
                        each = values.vectors(slot).repeat_interleave(rows.size // len(rows), 0)
                        shape = (rows.size, *[1] * (x.ndim - 2), x.shape[-1])
                        slot.owner._parameters[slot.name] = each.view(shape)  # type: ignore[assignment]
                    return forward(x.float()).to(x.dtype)  # type: ignore[no-any-return]
                for slot in leaf.slots:
                    unit = norm.neutral if slot.name == "weight" else 0.0
                    neutral = torch.full_like(slot.parameter, unit, dtype=torch.float32)
                    slot.owner._parameters[slot.name] = neutral  # type: ignore[assignment]
                y = rows.vectors(forward(x.float())).view(len(rows), -1, x.shape[-1])
                if weight is not None:
                    # A norm whose neutral weight is 0 multiplies by 1 + w.
                    y.mul_((values.vectors(weight) + (1.0 - norm.neutral))[:, None])
                if bias is not None:
                    y.add_(values.vectors(bias)[:, None])
                return y.view(x.shape).to(x.dtype)
            finally:
                leaf.put_back()
                values.scratch.release(mark)

        return run

    def _swapped(self, leaf: Leaf, forward: Road) -> Road:
        """Any other module: its parameters are exchanged for copies while its own forward runs, once
        for each run of the rows."""
        values = self.values

        def run(*args: Any, **kwargs: Any) -> Any:
            rows = values.rows
            if len(rows) == 1 or not any(map(values.moves, leaf.slots)):
                return self._exchanged(leaf, forward, args, kwargs)
            outputs = []
            for i in range(len(rows)):
                mine_args, mine_kwargs = tree_map(
                    lambda x, i=i: _run_of(x, rows, i), (args, kwargs)
                )
                with values.narrowed(rows.one(i)):
                    outputs.append(self._exchanged(leaf, forward, mine_args, mine_kwargs))
            return tree_map(lambda *found: _joined(found, rows), *outputs)

        return run

    def _exchanged(self, leaf: Leaf, forward: Road, args: Any, kwargs: Any) -> Any:
        """One that has vectors only (a norm, a scale) computes in float32: in bfloat16, 1 +- 1e-3
        rounds back to 1. One around another module (IA3) is handed what that one takes."""
        values = self.values
        inputs = [x for x in (*args, *kwargs.values()) if _floating(x)]
        # An embedding starts the stream, whatever masks it is handed (OPT's positions: float32).
        starts = not inputs or isinstance(leaf.module, nn.Embedding)
        outer = values.compute_dtype if starts else inputs[0].dtype
        inner = torch.float32 if leaf.only_vectors else outer
        if inner != outer and not leaf.only_contained:
            args = tuple(_cast(x, outer, inner) for x in args)
            kwargs = {key: _cast(x, outer, inner) for key, x in kwargs.items()}
        mark = values.scratch.mark()
        try:
            for slot in leaf.slots:
                slot.owner._parameters[slot.name] = values.whole(slot, inner)  # type: ignore[assignment]
            output = forward(*args, **kwargs)
        finally:
            leaf.put_back()
            values.scratch.release(mark)
        if inner == outer:
            return output
        if isinstance(output, tuple):
            return tuple(_cast(x, inner, outer) for x in output)
        return _cast(output, inner, outer)


@dataclass(frozen=True, slots=True)
class Norm:
    """A module that computes x_hat * (w + 1 - neutral) + b: with its weight at `neutral` it multiplies
    by one. `broadcasts`: its parameters may be as large as its input."""

    neutral: float
    broadcasts: bool


def find_norms(leaves: Sequence[Leaf]) -> dict[nn.Module, Norm]:
    """The norms among the leaves: seen on random vectors, not believed from names."""
    return {
        leaf.module: norm
        for leaf in leaves
        if leaf.only_own and leaf.only_vectors and (norm := _norm(leaf)) is not None
    }


@torch.no_grad()
def _norm(leaf: Leaf) -> Norm | None:
    sizes = {slot.parameter.numel() for slot in leaf.slots}
    names = {slot.name for slot in leaf.slots}
    named = "norm" in type(leaf.module).__name__.lower()
    if not named or len(sizes) > 1 or not names <= {"weight", "bias"}:
        return None
    device = leaf.slots[0].parameter.device
    x, w, b = (
        torch.randn(3, n, generator=torch.Generator().manual_seed(0)).to(device)
        for n in 3 * [sizes.pop()]
    )

    def at(weight: Tensor, bias: Tensor) -> Tensor:
        values = {"weight": weight, "bias": bias}
        for slot in leaf.slots:
            slot.owner._parameters[slot.name] = values[slot.name]  # type: ignore[assignment]
        found = leaf.module(x)
        assert isinstance(found, Tensor)
        return found

    def holds(weight: Tensor, bias: Tensor) -> bool:
        expected = x_hat * (weight + 1.0 - neutral if "weight" in names else 1.0)
        expected = expected + (bias if "bias" in names else 0.0)
        return torch.allclose(at(weight, bias), expected, rtol=1e-4, atol=1e-5)

    try:
        zero = torch.zeros_like(w[0])
        neutral = 0.0 if at(zero, zero).any() else 1.0
        x_hat = at(zero + neutral, zero)
        if not holds(w[0], b[0]):
            return None
    except (TypeError, RuntimeError, ValueError):
        return None  # not a function of one tensor of vectors
    finally:
        leaf.put_back()
    try:
        return Norm(neutral, holds(w, b))
    except RuntimeError:  # layer_norm takes vectors only
        return Norm(neutral, False)
    finally:
        leaf.put_back()


def _product(x: Tensor, matrix: Tensor, bias: Tensor | None) -> Tensor:
    if bias is None or bias.dtype == x.dtype:
        return nn.functional.linear(x, matrix, None if bias is None else bias[0])
    y = nn.functional.linear(x, matrix)
    return (y + bias[0]).to(y.dtype)


def _twins(leaf: Leaf, leaves: Sequence[Leaf], factors: Factors) -> list[int]:
    """The ids of the matrices that read the leaf's input; its own alone where roads differ."""
    own, kind = leaf.own("weight"), getattr(type(leaf.module), "forward", None)
    if kind not in (nn.Linear.forward, Conv1D.forward) or own is None or own.param is None:
        return []
    found = []
    for number in leaf.twins:
        slot = leaves[number].own("weight")
        same = getattr(type(leaves[number].module), "forward", None) is kind
        if slot is not None and slot.param is not None and slot.parameter.ndim == 2 and same:
            found.append(slot.param)
    purpose = PURPOSE_U if kind is Conv1D.forward else PURPOSE_V
    # Another kind of module may have read the input between them, or two of them share a matrix.
    return found if factors.stand_together(found, purpose) else [own.param]


def _run_of(x: Any, rows: Rows, i: int) -> Any:
    """Run i's part of an argument whose leading size is the rows (or rows * tokens); else itself."""
    if not isinstance(x, Tensor) or x.ndim == 0 or x.shape[0] == 1:
        return x
    if x.shape[0] % rows.size:
        raise MixedRows(x.shape[0], rows.size)
    return torch.chunk(x, len(rows))[i]


def _joined(parts: Sequence[Any], rows: Rows) -> Any:
    first = parts[0]
    if not isinstance(first, Tensor) or first.ndim == 0:
        return first
    each = rows.size // len(rows)
    if first.shape[0] == 1 and each > 1:
        parts = [part.expand(each, *part.shape[1:]) for part in parts]
    return torch.cat(list(parts))


def _floating(x: object) -> bool:
    return isinstance(x, Tensor) and x.is_floating_point()


def _cast(x: Any, source: torch.dtype, target: torch.dtype) -> Any:
    return x.to(target) if isinstance(x, Tensor) and x.dtype == source else x
