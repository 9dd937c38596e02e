"""The forward of a linear layer or an embedding while a probe is open."""

from __future__ import annotations

from torch import Tensor, nn

from zoft.engine.probe.leaves import Leaf, ParameterRef
from zoft.engine.probe.perturbed import PerturbedParameters


class LinearForward:
    """Stands in for the forward of nn.Linear, or of GPT-2's Conv1D."""

    def __init__(self, leaf: Leaf, parameters: PerturbedParameters) -> None:
        self.leaf, self.parameters = leaf, parameters

    def __call__(self, x: Tensor) -> Tensor:
        return self.product(x)

    def product(self, x: Tensor, part: slice | None = None) -> Tensor:
        """x (..., C) times the weight (its rows `part`), plus the bias, in x's type."""
        parameters, leaf = self.parameters, self.leaf
        scratch = parameters.probe.scratch
        mark = scratch.mark()
        try:
            bias = self._bias(part)
            return parameters.perturbation(leaf.weight).product(leaf, x, bias, part)
        finally:
            scratch.release(mark)

    def _bias(self, part: slice | None) -> Tensor | None:
        """(runs or 1, O) in float32: a low-precision bias would lose most of its perturbation."""
        if self.leaf.bias is not None:
            bias = self.parameters.vectors(self.leaf.bias)
        elif isinstance(frozen := getattr(self.leaf.module, "bias", None), Tensor):
            bias = frozen.detach()[None]
        else:
            return None
        return bias if part is None else bias[:, part].contiguous()


class EmbeddingForward:
    """Stands in for the forward of nn.Embedding: perturbs the rows that are looked up."""

    def __init__(self, weight: ParameterRef, parameters: PerturbedParameters) -> None:
        self.weight, self.parameters = weight, parameters

    def __call__(self, ids: Tensor) -> Tensor:
        rows, dtype = self.parameters.rows, self.parameters.compute_dtype
        if len(rows) > 1 and ids.shape[0] == 1:  # positions, alike in all rows
            ids = ids.expand(rows.size, *ids.shape[1:])
        flat = rows.vectors(ids[..., None]).view(len(rows), -1)
        found = self.parameters.perturbation(self.weight).lookup(self.weight, flat, dtype)
        return found.view(*ids.shape, -1)


def plain_embedding(leaf: Leaf) -> ParameterRef | None:
    """The weight of an nn.Embedding that does nothing but look rows up."""
    module = leaf.module
    simple = isinstance(module, nn.Embedding) and module.max_norm is None
    return leaf.weight if simple and leaf.forward_type is nn.Embedding.forward else None
