"""Norms: how they are recognised, and their forward while a probe is open."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from zoft.engine.probe.leaves import Leaf
from zoft.engine.probe.perturbed import PerturbedParameters
from zoft.errors import lacks_memory


@dataclass(frozen=True, slots=True)
class Norm:
    """A module that computes x_hat * (w + 1 - neutral) + b: with its weight at `neutral` it multiplies
    by one. `broadcasts`: its parameters may be as large as its input."""

    neutral: float
    broadcasts: bool


class NormForward:
    """x_hat * (w + scale * z) in float32, each run with its own z, in one run of the norm: with a weight
    of one row for each row of x, if it can multiply by that, else without its parameters.

    `forward` is the norm's own, `otherwise` serves where all rows see the same parameters.
    """

    def __init__(
        self,
        leaf: Leaf,
        norm: Norm,
        parameters: PerturbedParameters,
        forward: Callable[..., Any],
        otherwise: Callable[..., Any],
    ) -> None:
        self.leaf, self.norm, self.parameters = leaf, norm, parameters
        self.forward, self.otherwise = forward, otherwise

    def __call__(self, x: Tensor, *more: Any, **named: Any) -> Any:
        """`more`: a gate, say, of which the norm was not known to take one."""
        rows, probe = self.parameters.rows, self.parameters.probe
        if more or named or len(rows) == 1 or not any(map(probe.is_tuned, self.leaf.refs)):
            return self.otherwise(x, *more, **named)
        mark = probe.scratch.mark()
        try:
            whole = self.norm.broadcasts and x.shape[0] == rows.size
            y = self._broadcast(x) if whole else self._after_the_norm(x)
            return y.to(x.dtype)
        finally:
            probe.scratch.release(mark)

    def _broadcast(self, x: Tensor) -> Tensor:
        """The norm with parameters of one row for each row of x."""
        rows = self.parameters.rows
        shape = (rows.size, *[1] * (x.ndim - 2), x.shape[-1])
        each = [
            self.parameters.vectors(ref).repeat_interleave(rows.size // len(rows), 0).view(shape)
            for ref in self.leaf.refs
        ]
        y: Tensor = self.leaf.run_with(each, self.forward, x.float())
        return y

    def _after_the_norm(self, x: Tensor) -> Tensor:
        """The norm with parameters that change nothing, then each run's own."""
        leaf, neutral, rows = self.leaf, self.norm.neutral, self.parameters.rows
        none = [
            torch.full_like(
                ref.parameter, neutral if ref.name == "weight" else 0.0, dtype=torch.float32
            )
            for ref in leaf.refs
        ]
        y = rows.vectors(leaf.run_with(none, self.forward, x.float()))
        y = y.view(len(rows), -1, x.shape[-1])
        if leaf.weight is not None:
            # A norm whose neutral weight is 0 multiplies by 1 + w.
            y.mul_((self.parameters.vectors(leaf.weight) + (1.0 - neutral))[:, None])
        if leaf.bias is not None:
            y.add_(self.parameters.vectors(leaf.bias)[:, None])
        return y.view(x.shape)


def find_norms(leaves: Sequence[Leaf]) -> dict[nn.Module, Norm]:
    """The norms among the leaves: modules whose class is called one, and whose outputs on random vectors
    are those of a norm."""
    return {
        leaf.module: norm
        for leaf in leaves
        if leaf.only_own and leaf.only_vectors and (norm := _as_norm(leaf)) is not None
    }


@torch.no_grad()
def _as_norm(leaf: Leaf) -> Norm | None:
    sizes = {ref.parameter.numel() for ref in leaf.refs}
    named = "norm" in type(leaf.module).__name__.lower()
    if not named or len(sizes) > 1 or not {ref.name for ref in leaf.refs} <= {"weight", "bias"}:
        return None
    device = leaf.refs[0].parameter.device
    x, w, b = (
        torch.randn(3, n, generator=torch.Generator().manual_seed(0)).to(device)
        for n in 3 * [sizes.pop()]
    )
    try:
        zero = torch.zeros_like(w[0])
        neutral = 0.0 if _output(leaf, x, zero, zero).any() else 1.0
        x_hat = _output(leaf, x, zero + neutral, zero)
        if not _is_affine(leaf, neutral, x, x_hat, w[0], b[0]):
            return None
    except Exception as error:  # a norm that needs more than vectors, a gate say: any class
        if lacks_memory(error):
            raise
        return None
    try:
        return Norm(neutral, _is_affine(leaf, neutral, x, x_hat, w, b))
    except RuntimeError:  # layer_norm takes vectors only
        return Norm(neutral, False)


def _output(leaf: Leaf, x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """The module's output with these parameters."""
    tensors = [weight if ref.name == "weight" else bias for ref in leaf.refs]
    y = leaf.run_with(tensors, leaf.module, x)
    assert isinstance(y, Tensor)
    return y


def _is_affine(
    leaf: Leaf, neutral: float, x: Tensor, x_hat: Tensor, weight: Tensor, bias: Tensor
) -> bool:
    """Whether the module computes x_hat * (weight + 1 - neutral) + bias, with those that it has."""
    expected = x_hat
    if leaf.weight is not None:
        expected = expected * (weight + 1.0 - neutral)
    if leaf.bias is not None:
        expected = expected + bias
    return torch.allclose(_output(leaf, x, weight, bias), expected, rtol=1e-4, atol=1e-5)
