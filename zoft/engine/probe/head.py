"""The lean head: only the scored positions, only the wanted words, or a loss without all logits."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from zoft.engine.probe.forwards import Roads
from zoft.engine.probe.leaves import Leaf
from zoft.engine.probe.perturbed import Values
from zoft.engine.probe.rows import Rows, make_rows

CHUNK_LOGITS = 1 << 25  # float32 logits at a time: 128 MiB
CHUNK_WEIGHTS = 1 << 25  # elements of the head whose perturbed copy is there at a time


def chunk_words(rows: int, columns: int) -> int:
    """How many words of the vocabulary go at a time, for so many hidden states of that width."""
    fit = min(CHUNK_LOGITS // max(1, rows), CHUNK_WEIGHTS // columns)
    return max(1024, fit // 1024 * 1024)


@dataclass(frozen=True, slots=True)
class Lean:
    """What the head computes: of the hidden states at flat `positions` (N,) the logits (N, n) of the
    tokens `vocab` (n,), or of all, or, with `targets` (N,), -log p of these as (N, 1). Positions count
    the `tokens` that the model was given in each row; virtual ones may stand in front of them. Without
    positions: the logits (R, 1, V) of the last column, which is all that the next token needs."""

    positions: Tensor | None
    tokens: int
    vocab: Tensor | None = None
    targets: Tensor | None = None


class Head:
    """Stands in for the model's output embedding while a probe is open."""

    def __init__(self, module: nn.Module, leaf: Leaf | None, values: Values, roads: Roads) -> None:
        self.module, self.leaf, self.values, self.roads = module, leaf, values, roads
        self.is_linear = getattr(type(module), "forward", None) is nn.Linear.forward
        self.lean: Lean | None = None

    def road(self, forward: Callable[..., Any]) -> Callable[[Tensor], Tensor]:
        inner = self.roads.of(self.leaf) if self.leaf else forward

        def run(hidden: Tensor) -> Tensor:
            lean = self.lean
            if lean is None:
                raise RuntimeError("the head ran outside logits()")
            if lean.positions is None:
                # As a matrix: a strided (R, 1, C) makes torch copy the weight once for each row.
                return inner(hidden[:, -1])[:, None]  # type: ignore[no-any-return]
            tokens = hidden.shape[1]
            virtual = tokens - lean.tokens
            positions = lean.positions + virtual * (1 + lean.positions // lean.tokens)
            hidden = hidden.reshape(-1, hidden.shape[-1])[positions]
            with self.values.narrowed(self._rows(positions, tokens)):
                if lean.targets is not None:
                    return self._losses(hidden, lean.targets)
                if lean.vocab is None:
                    return inner(hidden)  # type: ignore[no-any-return]
                if not self.is_linear or (self.leaf and self.leaf.own("weight") is None):
                    return inner(hidden)[:, lean.vocab]  # type: ignore[no-any-return]
                return self._few(hidden.float(), lean.vocab)

        return run

    def _rows(self, positions: Tensor, tokens: int) -> Rows:
        """The model's rows, one for each position, in as few runs as these form."""
        rows = self.values.rows
        device = rows.which_tensor.device
        if len(set(rows.which)) == 1:
            return make_rows(positions.numel(), rows.which, rows.scales, device)
        run = positions // (tokens * (rows.size // len(rows)))
        which, scales = rows.which_tensor[run].tolist(), rows.scales_tensor[run].tolist()
        return make_rows(positions.numel(), which, scales, device)

    def _few(self, hidden: Tensor, vocab: Tensor) -> Tensor:
        """float32 throughout: the difference of two logits is the loss."""
        values, rows, leaf = self.values, self.values.rows, self.leaf
        weight, bias = (leaf.own("weight"), leaf.own("bias")) if leaf else (None, None)
        mark = values.scratch.mark()
        assert isinstance(self.module.weight, Tensor)
        if values.outer(weight):
            assert weight is not None
            assert weight.param is not None
            u, v = values.factors.u(weight.param), values.factors.v(weight.param)
            count = hidden.shape[0] // len(rows)
            which = rows.which_tensor.repeat_interleave(count)
            amount = (hidden * v[which]).sum(-1) * rows.scales_tensor.repeat_interleave(count)
            logits = hidden @ weight.parameter.detach()[vocab].float().t()
            logits += amount[:, None] * u[which[:, None], vocab]
        elif weight and values.moves(weight):
            tables = values.looked_up(weight, vocab.expand(len(rows), -1), torch.float32)
            parts = zip(torch.chunk(hidden, len(rows)), torch.chunk(tables, len(rows)), strict=True)
            logits = torch.cat([nn.functional.linear(mine, table) for mine, table in parts])
        else:
            logits = nn.functional.linear(hidden, self.module.weight.detach()[vocab].float())
        whole = values.vectors(bias) if bias else self.module.bias
        if isinstance(whole, Tensor):
            vector = whole.detach().float().view(-1, self.module.weight.shape[0])[:, vocab]
            logits = (logits.view(len(vector), -1, vocab.numel()) + vector[:, None]).view_as(logits)
        values.scratch.release(mark)
        return logits

    def _losses(self, hidden: Tensor, targets: Tensor) -> Tensor:
        """-log p of the targets in float32, (N, 1), over chunks of the vocabulary: the logarithm of the
        sum is carried along, so that logits (N, V) never stand in memory at once."""
        assert isinstance(self.module.weight, Tensor)
        words = self.module.weight.shape[0]
        size = chunk_words(*hidden.shape)
        total = torch.full(targets.shape, -torch.inf, device=hidden.device)
        wanted = torch.zeros(targets.shape, device=hidden.device)
        for begin in range(0, words, size):
            part = slice(begin, min(begin + size, words))
            logits = self._part(hidden, part).float()
            total = torch.logaddexp(total, logits.logsumexp(-1))
            inside = (targets >= part.start) & (targets < part.stop)
            column = (targets - begin).clamp(0, part.stop - begin - 1)
            wanted = torch.where(inside, logits.gather(1, column[:, None])[:, 0], wanted)
        return (total - wanted)[:, None]

    def _part(self, hidden: Tensor, part: slice) -> Tensor:
        if self.leaf is not None:
            return self.roads.linear(self.leaf, hidden, part)
        weight, bias = self.module.weight, self.module.bias
        assert isinstance(weight, Tensor)
        vector = bias[part] if isinstance(bias, Tensor) else None
        return nn.functional.linear(hidden, weight[part], vector)
