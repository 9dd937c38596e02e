"""The forward that stands in for a module's own while a probe is open."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map
from transformers.pytorch_utils import Conv1D

from zoft.zo.leaves import Leaf, Slot
from zoft.zo.rank1 import Rank1Products
from zoft.zo.rows import MixedRows, Rows
from zoft.zo.values import Values

Road = Callable[..., Any]


class Roads:
    """Chooses a road by the kind of the module: a matrix product, a table, a norm, anything else.

    `leaves` are all leaves of the model in the order of their first run; `norms` maps a norm that
    multiplies by its weight to what its weight must be for it to multiply by one.
    """

    def __init__(
        self, leaves: Sequence[Leaf], values: Values, norms: dict[nn.Module, float]
    ) -> None:
        self.values, self.norms = values, norms
        self.rank1 = Rank1Products(values, values.rows.which_tensor.device)
        self._twins = {leaf.module: _twins(leaf, leaves) for leaf in leaves}

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
        """x_hat * (w + scale * z) in float32, each run with its own z: the norm runs once, without
        its parameters."""
        swapped = self._swapped(leaf, forward)
        weight, bias = leaf.own("weight"), leaf.own("bias")

        def run(x: Tensor) -> Tensor:
            values = self.values
            if len(values.rows) == 1 or not any(map(values.moves, leaf.slots)):
                return swapped(x)  # type: ignore[no-any-return]
            mark = values.scratch.mark()
            try:
                for slot in leaf.slots:
                    unit = self.norms[leaf.module] if slot.name == "weight" else 0.0
                    neutral = torch.full_like(slot.parameter, unit, dtype=torch.float32)
                    slot.owner._parameters[slot.name] = neutral  # type: ignore[assignment]
                y = forward(x.float())
                flat = values.rows.vectors(y).view(len(values.rows), -1, y.shape[-1])
                if weight is not None:
                    # A norm whose neutral weight is 0 multiplies by 1 + w.
                    flat = (
                        flat * (values.vectors(weight) + (1.0 - self.norms[leaf.module]))[:, None]
                    )
                if bias is not None:
                    flat = flat + values.vectors(bias)[:, None]
                return flat.view(x.shape).to(x.dtype)
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
        rounds back to 1."""
        values = self.values
        inputs = [x for x in (*args, *kwargs.values()) if _floating(x)]
        # An embedding starts the stream, whatever masks it is handed (OPT's positions: float32).
        starts = not inputs or isinstance(leaf.module, nn.Embedding)
        outer = values.compute_dtype if starts else inputs[0].dtype
        inner = torch.float32 if leaf.only_vectors else outer
        if inner != outer:
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


def find_norms(leaves: Sequence[Leaf]) -> dict[nn.Module, float]:
    """The norms that multiply by their weight (neutral at 1) or by 1 + weight (neutral at 0).

    Seen on random vectors, not told from names: f(x; w, b) must be x_hat * (w + offset) + b.
    """
    return {
        leaf.module: neutral
        for leaf in leaves
        if leaf.only_own and leaf.only_vectors and (neutral := _neutral(leaf)) is not None
    }


@torch.no_grad()
def _neutral(leaf: Leaf) -> float | None:
    module, sizes = leaf.module, {slot.parameter.numel() for slot in leaf.slots}
    names = {slot.name for slot in leaf.slots}
    if (
        "norm" not in type(module).__name__.lower()
        or len(sizes) > 1
        or not names <= {"weight", "bias"}
    ):
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
        found = module(x)
        assert isinstance(found, Tensor)
        return found

    try:
        zero = torch.zeros_like(w[0])
        neutral = 0.0 if at(zero, zero).any() else 1.0
        x_hat = at(zero + neutral, zero)
        whole = at(w[0], b[0] if "bias" in names else zero)
        expected = x_hat * (w[0] + 1.0 - neutral if "weight" in names else 1.0)
        expected = expected + (b[0] if "bias" in names else 0.0)
        return neutral if torch.allclose(whole, expected, rtol=1e-4, atol=1e-5) else None
    except (TypeError, RuntimeError, ValueError):
        return None  # not a function of one tensor of vectors
    finally:
        leaf.put_back()


def _product(x: Tensor, matrix: Tensor, bias: Tensor | None) -> Tensor:
    if bias is None or bias.dtype == x.dtype:
        return nn.functional.linear(x, matrix, None if bias is None else bias[0])
    y = nn.functional.linear(x, matrix)
    return (y + bias[0]).to(y.dtype)


def _twins(leaf: Leaf, leaves: Sequence[Leaf]) -> list[int]:
    """The ids of the matrices that read the leaf's input; its own alone where roads differ."""
    kinds = (nn.Linear.forward, Conv1D.forward)
    found = []
    for number in leaf.twins:
        other = leaves[number]
        slot = other.own("weight")
        same = getattr(type(other.module), "forward", None) is getattr(
            type(leaf.module), "forward", None
        )
        if slot is not None and slot.param is not None and slot.parameter.ndim == 2 and same:
            found.append(slot.param)
    own = leaf.own("weight")
    if getattr(type(leaf.module), "forward", None) not in kinds or own is None or own.param is None:
        return []
    return found


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
