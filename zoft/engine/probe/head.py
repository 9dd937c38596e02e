"""The model's head: only the scored positions and the wanted tokens, or a loss without all logits."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from zoft.engine.probe.forwards.choose import PerturbedForwards
from zoft.engine.probe.forwards.generic import Forward
from zoft.engine.probe.forwards.linear import LinearForward
from zoft.engine.probe.leaves import Leaf
from zoft.engine.probe.perturbed import PerturbedParameters
from zoft.engine.probe.rows import RowAssignment, assign_rows
from zoft.system.accelerator import send

CHUNK_LOGITS = 1 << 25  # float32 logits at a time: 128 MiB
CHUNK_WEIGHTS = 1 << 25  # elements of the head whose perturbed copy is there at a time


def chunk_words(rows: int, columns: int) -> int:
    """How many tokens of the vocabulary go at a time, for so many hidden states of that width."""
    fit = min(CHUNK_LOGITS // max(1, rows), CHUNK_WEIGHTS // columns)
    return max(1024, fit // 1024 * 1024)


@dataclass(frozen=True, slots=True)
class HeadRequest:
    """What the head computes: of the hidden states at flat `positions` (N,), on the host, the logits
    (N, n) of the tokens `vocab` (n,), or of all, or, with `targets` (N,), -log p of these as (N, 1), or
    the `hidden` states themselves (N, d) in float32. Positions count
    the `tokens` that the model was given in each row; virtual ones may stand in front of them. Without
    positions: the logits (R, 1, V) of the last column, which is all that the next token needs."""

    positions: Tensor | None
    tokens: int
    vocab: Tensor | None = None
    targets: Tensor | None = None
    hidden: bool = False


class HeadForward:
    """Stands in for the forward of the model's output embedding. `leaf` is None where a probe leaves it
    as it is."""

    def __init__(
        self,
        module: nn.Module,
        leaf: Leaf | None,
        parameters: PerturbedParameters,
        forwards: PerturbedForwards,
    ) -> None:
        self.module, self.leaf, self.parameters = module, leaf, parameters
        self.is_linear = getattr(type(module), "forward", None) is nn.Linear.forward
        self.request: HeadRequest | None = None
        self._forwards = forwards
        self._all_logits: Forward = module.forward

    def open(self) -> None:
        """Begin to stand in for the module's forward as it is now."""
        self._all_logits = self._forwards.of(self.leaf) if self.leaf else self.module.forward

    def __call__(self, hidden: Tensor) -> Tensor:
        request = self.request
        if request is None:
            raise RuntimeError("the head ran outside logits()")
        if request.positions is None:
            # As a matrix: a strided (R, 1, C) makes torch copy the weight once for each row.
            return self._all_logits(hidden[:, -1])[:, None]  # type: ignore[no-any-return]
        tokens = hidden.shape[1]
        virtual = tokens - request.tokens
        positions = request.positions + virtual * (1 + request.positions // request.tokens)
        hidden = hidden.reshape(-1, hidden.shape[-1])[send(positions, hidden.device)]
        if request.hidden:
            return hidden.float()
        with self.parameters.narrowed(self._rows(positions, tokens)):
            if request.targets is not None:
                if hidden.requires_grad:
                    return _TargetLosses.apply(hidden, self, request.targets)  # type: ignore[no-any-return,no-untyped-call]
                total, wanted = self._total_and_wanted(hidden, request.targets)
                return (total - wanted)[:, None]
            if request.vocab is None:
                return self._all_logits(hidden)  # type: ignore[no-any-return]
            if not self.is_linear or (self.leaf and self.leaf.weight is None):
                return self._all_logits(hidden)[:, request.vocab]  # type: ignore[no-any-return]
            return self._some_logits(hidden.float(), request.vocab)

    def _rows(self, positions: Tensor, tokens: int) -> RowAssignment:
        """The model's rows, one for each position, in as few runs as these form."""
        rows = self.parameters.rows
        device = rows.which_tensor.device
        if len(set(rows.which)) == 1:
            return assign_rows(positions.numel(), rows.which, rows.scales, device)
        run = positions // (tokens * (rows.size // len(rows)))
        which, scales = zip(*((rows.which[i], rows.scales[i]) for i in run.tolist()), strict=True)
        return assign_rows(positions.numel(), which, scales, device)

    def _some_logits(self, hidden: Tensor, vocab: Tensor) -> Tensor:
        """Logits (N, n) of the tokens `vocab`. float32 throughout: the difference of two is the loss."""
        parameters = self.parameters
        weight, bias = (self.leaf.weight, self.leaf.bias) if self.leaf else (None, None)
        scratch = parameters.probe.scratch
        mark = scratch.mark()
        assert isinstance(self.module.weight, Tensor)
        if weight is not None and parameters.is_tuned(weight):
            logits = parameters.perturbation(weight).logits(weight, hidden, vocab)
        else:
            logits = nn.functional.linear(hidden, self.module.weight.detach()[vocab].float())
        vector = parameters.vectors(bias) if bias else self.module.bias
        if isinstance(vector, Tensor):
            vector = vector.detach().float().view(-1, self.module.weight.shape[0])[:, vocab]
            logits = (logits.view(len(vector), -1, vocab.numel()) + vector[:, None]).view_as(logits)
        scratch.release(mark)
        return logits

    def losses_and_gradient(self, hidden: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        """-log p of the targets in float32, (N,), and of each the gradient with respect to its hidden
        state, (N, d) float32: (p - y) W."""
        total, wanted = self._total_and_wanted(hidden, targets)
        assert isinstance(self.module.weight, Tensor)
        weight = self.module.weight.detach()
        gradient = -weight[targets].float()
        for part in self._parts(hidden):
            p = self._part(hidden, part).float().sub_(total[:, None]).exp_()
            gradient += p.to(weight.dtype) @ weight[part]
            del p  # before the next chunk's
        return total - wanted, gradient

    def _total_and_wanted(self, hidden: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        """log sum exp of all logits, and those of the targets, (N,) float32 each, over chunks of the
        vocabulary: the logarithm of the sum is carried along, so that logits (N, V) never stand in
        memory at once."""
        total = torch.full(targets.shape, -torch.inf, device=hidden.device)
        wanted = torch.zeros(targets.shape, device=hidden.device)
        for part in self._parts(hidden):
            logits = self._part(hidden, part).float()
            total = torch.logaddexp(total, logits.logsumexp(-1))
            inside = (targets >= part.start) & (targets < part.stop)
            column = (targets - part.start).clamp(0, part.stop - part.start - 1)
            wanted = torch.where(inside, logits.gather(1, column[:, None])[:, 0], wanted)
        return total, wanted

    def _parts(self, hidden: Tensor) -> Iterator[slice]:
        """The vocabulary in chunks."""
        assert isinstance(self.module.weight, Tensor)
        vocabulary, size = self.module.weight.shape[0], chunk_words(*hidden.shape)
        for begin in range(0, vocabulary, size):
            yield slice(begin, min(begin + size, vocabulary))

    def _part(self, hidden: Tensor, part: slice) -> Tensor:
        """Logits of the tokens `part` of the vocabulary."""
        if self.leaf is not None:
            return LinearForward(self.leaf, self.parameters).product(hidden, part)
        weight, bias = self.module.weight, self.module.bias
        assert isinstance(weight, Tensor)
        vector = bias[part] if isinstance(bias, Tensor) else None
        return nn.functional.linear(hidden, weight[part], vector)


class _TargetLosses(torch.autograd.Function):
    """`losses_and_gradient`, for a graph: each loss depends on one hidden state alone."""

    @staticmethod
    def forward(ctx: Any, hidden: Tensor, head: HeadForward, targets: Tensor) -> Tensor:
        losses, gradient = head.losses_and_gradient(hidden, targets)
        ctx.save_for_backward(gradient.to(hidden.dtype))
        return losses[:, None]

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        [gradient] = ctx.saved_tensors
        return grad.to(gradient.dtype) * gradient, None, None
