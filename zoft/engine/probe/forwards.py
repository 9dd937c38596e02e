"""The forward that stands in for a module's own while a probe is open."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map

from zoft.engine.probe.leaves import Leaf
from zoft.engine.probe.linear import EmbeddingForward, LinearForward, plain_embedding
from zoft.engine.probe.norms import NormForward, find_norms
from zoft.engine.probe.perturbed import PerturbedParameters
from zoft.engine.probe.rows import MixedRows, RowAssignment
from zoft.engine.probe.structures.experts import ExpertsForward, is_experts

Forward = Callable[..., Any]


class PerturbedForwards:
    """Chooses a forward by the kind of the module: linear, embedding, experts, norm, anything else."""

    def __init__(self, leaves: Sequence[Leaf], parameters: PerturbedParameters) -> None:
        self.parameters, self.norms = parameters, find_norms(leaves)

    def of(self, leaf: Leaf) -> Forward:
        """What computes the module at the point of the open probe."""
        if leaf.only_own and leaf.is_linear:
            return LinearForward(leaf, self.parameters)
        if leaf.only_own and (table := plain_embedding(leaf)) is not None:
            return EmbeddingForward(table, self.parameters)
        forward = leaf.module.forward
        generic = GenericForward(leaf, self.parameters, forward)
        if is_experts(leaf):
            return ExpertsForward(leaf, self.parameters, generic)
        if leaf.module in self.norms:
            return NormForward(leaf, self.norms[leaf.module], self.parameters, forward, generic)
        return generic


class GenericForward:
    """Any module: its parameters are replaced by copies while its own forward runs, once for each run of
    the rows."""

    def __init__(self, leaf: Leaf, parameters: PerturbedParameters, forward: Forward) -> None:
        self.leaf, self.parameters, self.forward = leaf, parameters, forward

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        rows = self.parameters.rows
        if len(rows) == 1 or not any(map(self.parameters.is_tuned, self.leaf.refs)):
            return self._run(*args, **kwargs)
        outputs = []
        for i in range(len(rows)):
            own_args, own_kwargs = tree_map(lambda x, i=i: _rows_of_run(x, rows, i), (args, kwargs))
            with self.parameters.narrowed(rows.one(i)):
                outputs.append(self._run(*own_args, **own_kwargs))
        return tree_map(lambda *found: _joined(found, rows), *outputs)

    def _run(self, *args: Any, **kwargs: Any) -> Any:
        """One that has vectors only (a norm, a scale) computes in float32: in bfloat16, 1 +- 1e-3
        rounds back to 1. One around another module (IA3) is handed what that one takes."""
        leaf, parameters = self.leaf, self.parameters
        inputs = [x for x in (*args, *kwargs.values()) if _is_floating(x)]
        # An embedding starts the stream, whatever masks it is handed (OPT's positions: float32).
        starts = not inputs or isinstance(leaf.module, nn.Embedding)
        outer = parameters.compute_dtype if starts else inputs[0].dtype
        inner = torch.float32 if leaf.only_vectors else outer
        if inner != outer and not leaf.only_contained:
            args = tuple(_cast(x, outer, inner) for x in args)
            kwargs = {key: _cast(x, outer, inner) for key, x in kwargs.items()}
        scratch = parameters.probe.scratch
        mark = scratch.mark()
        try:
            tensors = [parameters.perturbed(ref, inner) for ref in leaf.refs]
            output = leaf.run_with(tensors, self.forward, *args, **kwargs)
        finally:
            scratch.release(mark)
        if inner == outer:
            return output
        if isinstance(output, tuple):
            return tuple(_cast(x, inner, outer) for x in output)
        return _cast(output, inner, outer)


def _rows_of_run(x: Any, rows: RowAssignment, i: int) -> Any:
    """Run i's part of an argument whose leading size is the rows (or rows * tokens); else itself."""
    if not isinstance(x, Tensor) or x.ndim == 0 or x.shape[0] == 1:
        return x
    if x.shape[0] % rows.size:
        raise MixedRows(x.shape[0], rows.size)
    return torch.chunk(x, len(rows))[i]


def _joined(parts: Sequence[Any], rows: RowAssignment) -> Any:
    """The outputs of all runs as one, in the order of the rows."""
    first = parts[0]
    if not isinstance(first, Tensor) or first.ndim == 0:
        return first
    each = rows.size // len(rows)
    if first.shape[0] == 1 and each > 1:
        parts = [part.expand(each, *part.shape[1:]) for part in parts]
    return torch.cat(list(parts))


def _is_floating(x: object) -> bool:
    return isinstance(x, Tensor) and x.is_floating_point()


def _cast(x: Any, source: torch.dtype, target: torch.dtype) -> Any:
    return x.to(target) if isinstance(x, Tensor) and x.dtype == source else x
