"""The forward of any module: copies of its parameters while its own forward runs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_flatten, tree_map, tree_unflatten

from zoft.engine.probe.leaves import Leaf, ParameterRef
from zoft.engine.probe.perturbed import PerturbedParameters
from zoft.engine.probe.rows import MixedRows, RowAssignment
from zoft.engine.probe.watched_pass import NO_TENSOR

Forward = Callable[..., Any]


class GenericForward:
    """Any module: its parameters are replaced by copies while its own forward runs, once for each run of
    the rows."""

    def __init__(self, leaf: Leaf, parameters: PerturbedParameters, forward: Forward) -> None:
        self.leaf, self.parameters, self.forward = leaf, parameters, forward
        # One with vectors only (a norm, a scale) computes in float32: in bfloat16, 1 +- 1e-3 rounds
        # back to 1. Matrices below it would not take float32.
        self.in_float32 = leaf.only_vectors and (
            leaf.only_contained or not any(leaf.module.children())
        )

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        rows = self.parameters.rows
        if len(rows) == 1 or not any(map(self.parameters.is_tuned, self.leaf.refs)):
            return self._run(*args, **kwargs)
        outputs = []
        for i in range(len(rows)):
            own_args, own_kwargs = self._of_run(args, kwargs, i)
            with self.parameters.narrowed(rows.one(i)):
                outputs.append(self._run(*own_args, **own_kwargs))
        axis = next((axis for axis in self.leaf.row_axes if axis not in (None, NO_TENSOR)), 0)
        return tree_map(lambda *found: _joined(found, rows, axis), *outputs)

    def _of_run(self, args: Any, kwargs: Any, i: int) -> Any:
        """The arguments with run i's rows alone, where they have rows."""
        rows, (flat, spec) = self.parameters.rows, tree_flatten((args, kwargs))
        axes = self.leaf.row_axes
        if len(axes) != len(flat):  # called in another way than the one that was watched
            axes = (NO_TENSOR,) * len(flat)
        cut = [_rows_of_run(x, axis, rows, i) for x, axis in zip(flat, axes, strict=True)]
        return tree_unflatten(cut, spec)

    def _run(self, *args: Any, **kwargs: Any) -> Any:
        """The module in one run of rows. One around another module (IA3) is handed what that takes."""
        leaf, parameters = self.leaf, self.parameters
        inputs = [x for x in (*args, *kwargs.values()) if _is_floating(x)]
        # An embedding starts the stream, whatever masks it is handed (OPT's positions: float32).
        starts = not inputs or isinstance(leaf.module, nn.Embedding)
        outer = parameters.compute_dtype if starts else inputs[0].dtype
        inner = torch.float32 if self.in_float32 else outer
        if inner != outer and not leaf.only_contained:
            args = tuple(_cast(x, outer, inner) for x in args)
            kwargs = {key: _cast(x, outer, inner) for key, x in kwargs.items()}
        scratch = parameters.probe.scratch
        mark = scratch.mark()
        try:
            tensors = [self._parameter(ref, inner) for ref in leaf.refs]
            output = leaf.run_with(tensors, self.forward, *args, **kwargs)
        finally:
            scratch.release(mark)
        if inner == outer:
            return output
        if isinstance(output, tuple):
            return tuple(_cast(x, inner, outer) for x in output)
        return _cast(output, inner, outer)

    def _parameter(self, ref: ParameterRef, dtype: torch.dtype) -> Tensor:
        """The parameter at the open probe's point; a module around this one may have put it there."""
        if ref.replaced is not None:
            return ref.replaced
        return self.parameters.perturbed(ref, torch.float32 if ref.in_float32 else dtype)


def _rows_of_run(x: Any, axis: int | None, rows: RowAssignment, i: int) -> Any:
    """Run i's part of an argument along the axis of its rows; NO_TENSOR if that is not known, and then
    the first axis is taken."""
    if not isinstance(x, Tensor) or axis is None or x.ndim == 0:
        return x
    axis = max(axis, 0)
    if x.shape[axis] == 1:
        return x
    if x.shape[axis] % rows.size:
        raise MixedRows.of(x.shape[axis], rows.size)
    return torch.chunk(x, len(rows), axis)[i]


def _joined(parts: Sequence[Any], rows: RowAssignment, axis: int) -> Any:
    """The outputs of all runs as one, in the order of the rows, which are along `axis`."""
    first = parts[0]
    if not isinstance(first, Tensor) or first.ndim == 0:
        return first
    axis = axis if axis < first.ndim else 0
    each = rows.size // len(rows)
    if first.shape[axis] == 1 and each > 1:
        parts = [part.repeat_interleave(each, axis) for part in parts]
    return torch.cat(list(parts), axis)


def _is_floating(x: object) -> bool:
    return isinstance(x, Tensor) and x.is_floating_point()


def _cast(x: Any, source: torch.dtype, target: torch.dtype) -> Any:
    return x.to(target) if isinstance(x, Tensor) and x.dtype == source else x
