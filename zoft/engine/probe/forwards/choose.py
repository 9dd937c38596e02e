"""Which forward stands in for a module's own while a probe is open."""

from __future__ import annotations

from collections.abc import Sequence

from zoft.engine.probe.forwards.experts import ExpertsForward, is_experts
from zoft.engine.probe.forwards.generic import Forward, GenericForward
from zoft.engine.probe.forwards.linear import EmbeddingForward, LinearForward, plain_embedding
from zoft.engine.probe.forwards.norms import NormForward, find_norms
from zoft.engine.probe.leaves import Leaf
from zoft.engine.probe.perturbed import PerturbedParameters


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
