"""The forward of a layer of experts while a probe with rank-1 directions is open.

transformers gives such modules one interface (`use_experts_implementation`): tensors of all experts'
matrices, and for each token the experts that it goes to. The pairs of a token and one of its experts are
sorted by expert, so that only experts which are reached compute, all directions in one product.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from zoft.engine.kernels.dispatch import kernels_for
from zoft.engine.probe.leaves import Leaf, ParameterRef
from zoft.engine.probe.perturbed import PerturbedParameters
from zoft.engine.probe.rows import RowAssignment
from zoft.engine.probe.structures.factors import Factors
from zoft.engine.probe.structures.rank1 import Rank1Perturbation

INTERFACE = ("_apply_gate", "has_gate", "has_bias", "has_post_expert_norm", "is_transposed")
TENSORS = {"gate_up_proj", "up_proj", "down_proj"}


def is_experts(leaf: Leaf) -> bool:
    """Whether the module has the interface, and reads nothing but what that names."""
    module: Any = leaf.module
    names = {ref.name.removesuffix("_bias") for ref in leaf.refs}
    if not leaf.only_own or not names <= TENSORS or not all(hasattr(module, x) for x in INTERFACE):
        return False
    # A norm behind the experts would be handed rows in their order, not in that of the pass.
    return not module.has_post_expert_norm


class ExpertsForward:
    """Stands in for the forward of experts; `otherwise` serves where their z is not rank-1."""

    def __init__(self, leaf: Leaf, parameters: PerturbedParameters, otherwise: Any) -> None:
        self.parameters, self.otherwise = parameters, otherwise
        self.module: Any = leaf.module
        self.refs = {ref.name: ref for ref in leaf.refs}

    def __call__(self, hidden_states: Tensor, top_k_index: Tensor, top_k_weights: Tensor) -> Any:
        factors = self._factors()
        if factors is None:
            return self.otherwise(hidden_states, top_k_index, top_k_weights)
        module, rows = self.module, self.parameters.rows
        chosen = _Chosen.by(top_k_index, rows, len(module.down_proj))
        x = rows.vectors(hidden_states)[chosen.order // top_k_index.shape[-1]]
        x = self._linear(factors, "gate_up_proj" if module.has_gate else "up_proj", x, chosen)
        x = module._apply_gate(x) if module.has_gate else module.act_fn(x)
        x = self._linear(factors, "down_proj", x.contiguous(), chosen)
        x = x * top_k_weights.reshape(-1)[chosen.order, None]
        y = torch.empty_like(x)
        y[chosen.order] = x
        y = y.view(*top_k_index.shape, -1).sum(1)
        return y.view(hidden_states.shape).to(hidden_states.dtype)

    def _factors(self) -> Factors | None:
        """u and v of the tensors of experts; None where one that is tuned has dense directions."""
        found = {
            self.parameters.perturbation(ref)
            for ref in self.refs.values()
            if ref.name in TENSORS and self.parameters.is_tuned(ref)
        }
        only = found.pop() if len(found) == 1 else None
        return only.factors if isinstance(only, Rank1Perturbation) else None

    def _linear(self, factors: Factors, name: str, x: Tensor, chosen: _Chosen) -> Tensor:
        """x (S, C), sorted by expert, times each expert's matrix, plus its bias: (S, O) in x's type.

        The correction is written first and the product accumulated upon it, in float32 in every type,
        and rounded once; x v is rounded before, as in a widened product.
        """
        transposed = self.module.is_transposed
        weight = getattr(self.module, name).detach()
        matrices = weight if transposed else weight.mT  # (E, C, O)
        shape, ref = (len(x), matrices.shape[-1]), self._tuned(name)
        bias = self._bias(f"{name}_bias", chosen) if self.module.has_bias else None
        if ref is None:
            y = torch.empty(shape, dtype=x.dtype, device=x.device)
        else:
            kernels, param = kernels_for(x.device), ref.param
            assert param is not None
            v, u = factors.v(param), factors.u(param)
            v, u = (u, v) if transposed else (v, u)
            s, y = torch.empty((1, len(x)), device=x.device), torch.empty(shape, device=x.device)
            # Every row is a run of its own.
            kernels.project(s, x, v.view(1, -1, x.shape[1]), chosen.factors, chosen.scales)
            kernels.prefill(y, s[0], u.view(-1, shape[1]), chosen.factors)
            y = y.to(x.dtype)
        self._accumulate(y, x, matrices, chosen.counts, beta=0 if ref is None else 1)
        return y if bias is None else (y + bias).to(x.dtype)

    def _accumulate(
        self, y: Tensor, x: Tensor, matrices: Tensor, counts: list[int], *, beta: int
    ) -> None:
        """y = beta * y + x times each row's matrix."""
        probe, begin = self.parameters.probe, 0
        for matrix, count in zip(matrices, counts, strict=True):
            if count:
                part, mark = slice(begin, begin + count), probe.scratch.mark()
                y[part].addmm_(x[part], probe.cast(matrix, x.dtype), beta=beta)
                probe.scratch.release(mark)
                begin += count

    def _tuned(self, name: str) -> ParameterRef | None:
        """The parameter, if the probe perturbs it."""
        ref = self.refs.get(name)
        return ref if self.parameters.is_tuned(ref) else None

    def _bias(self, name: str, chosen: _Chosen) -> Tensor:
        """(S, O) float32: of each pair its expert's, as its run sees it."""
        ref = self._tuned(name)
        if ref is None:
            bias: Tensor = getattr(self.module, name).detach()[chosen.experts.view(-1)].float()
        else:
            perturbation = self.parameters.perturbation(ref)
            bias = perturbation.lookup(ref, chosen.experts, torch.float32)
        return bias[chosen.order]


@dataclass(frozen=True, slots=True)
class _Chosen:
    """The S pairs of a pass: `experts` (runs, S / runs) in its own order, and their `order` (S,) by
    expert.

    So sorted: how many each expert has, and for each pair its `factors` (S,), the number direction *
    experts + expert of its u and v, and its scale (S,).
    """

    experts: Tensor
    order: Tensor
    counts: list[int]
    factors: Tensor
    scales: Tensor

    @classmethod
    def by(cls, top_k_index: Tensor, rows: RowAssignment, experts: int) -> _Chosen:
        flat = top_k_index.reshape(-1)
        expert, order = flat.sort(stable=True)
        run = order // (flat.numel() // len(rows))
        counts: list[int] = torch.bincount(flat, minlength=experts).tolist()
        return cls(
            flat.view(len(rows), -1),
            order,
            counts,
            rows.which_tensor[run] * experts + expert,
            rows.scales_tensor[run],
        )
