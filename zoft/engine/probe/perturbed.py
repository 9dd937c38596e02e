"""The parameters as an open probe shows them: theta + scale * z, run by run, made when asked for."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace

import torch
from torch import Tensor, nn

from zoft.engine.kernels.dispatch import kernels_for
from zoft.engine.probe.directions import Direction
from zoft.engine.probe.factors import Factors
from zoft.engine.probe.leaves import Leaf, Slot
from zoft.engine.probe.rows import Rows, make_rows
from zoft.engine.probe.scratch import Scratch
from zoft.system.philox import PURPOSE_U, PURPOSE_V


class Values:
    """What is at the point of the open probe: a direction (None: theta itself) and the pass's rows.

    Whatever it returns may be a tensor in `scratch`, valid until the caller releases it.
    """

    def __init__(
        self, leaves: Sequence[Leaf], compute_dtype: torch.dtype, device: torch.device
    ) -> None:
        self.compute_dtype = compute_dtype
        self.scratch = Scratch(device)
        # The type in which each dense parameter last met its inputs while a probe was open.
        self.delivered: dict[nn.Parameter, torch.dtype] = {}
        self.factors = Factors(_factor_groups(leaves), device)
        self.direction: Direction | None = None
        self.ks: tuple[int, ...] = ()
        self.rows = make_rows(1, (0,), (0.0,), device)

    def open(self, direction: Direction | None, examples: int | None) -> None:
        """`examples` B: example i has direction k * B + i, None: all have k
        (docs/methods.md#per-example-directions)."""
        self.direction = direction
        if direction is None:
            return
        first = direction.k * (examples or 1)
        self.ks = tuple(range(first, first + (examples or 1)))
        if direction.rank1:
            self.factors.draw(direction.seed, direction.step, self.ks)

    @contextmanager
    def narrowed(self, rows: Rows) -> Iterator[None]:
        """Inside, the pass has these rows only."""
        before, self.rows = self.rows, rows
        try:
            yield
        finally:
            self.rows = before

    def moves(self, slot: Slot | None) -> bool:
        return slot is not None and slot.param is not None and self.direction is not None

    def outer(self, slot: Slot | None) -> bool:
        """Whether the slot is perturbed by u v^T."""
        return (
            slot is not None
            and self.moves(slot)
            and self.direction is not None
            and self.direction.rank1
            and slot.parameter.ndim == 2
        )

    def whole(
        self, slot: Slot, dtype: torch.dtype, run: int = 0, part: slice | None = None
    ) -> Tensor:
        """The parameter as `run` sees it, or its rows `part`: itself, a cast, or a copy in scratch."""
        weight = slot.parameter.detach() if part is None else slot.parameter.detach()[part]
        scale = self.rows.scales[run]
        if not self.moves(slot) or scale == 0.0:
            return self.unmoved(weight, dtype)
        assert self.direction is not None
        assert slot.param is not None
        out = self.scratch.take(weight.shape, dtype)
        if self.outer(slot):
            which = self.rows.which[run]
            u, v = self.factors.u(slot.param)[which], self.factors.v(slot.param)[which]
            u = u if part is None else u[part]
            return out.copy_(torch.addr(weight.float(), u.float(), v.float(), alpha=scale))
        self.delivered[slot.parameter] = dtype
        z = replace(self.direction, k=self.ks[self.rows.which[run]])
        columns = weight.numel() // max(1, weight.shape[0])
        z.perturb(out, weight, slot.param, scale, offset=part.start * columns if part else 0)
        return out

    def unmoved(self, weight: Tensor, dtype: torch.dtype) -> Tensor:
        """`weight`, or its cast in scratch."""
        if weight.dtype == dtype:
            return weight
        return self.scratch.take(weight.shape, dtype).copy_(weight)

    def pair(self, slot: Slot, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """The parameter as the two runs of a paired dense probe see it, in one sweep."""
        assert self.direction is not None
        assert slot.param is not None
        weight = slot.parameter.detach()
        self.delivered[slot.parameter] = dtype
        plus, minus = (self.scratch.take(weight.shape, dtype) for _ in range(2))
        self.direction.perturb_pair(plus, minus, weight, slot.param, self.rows.scales[0])
        return plus, minus

    def vectors(self, slot: Slot) -> Tensor:
        """A vector as every run sees it: (runs, C) float32, or (1, C) where they see the same."""
        weight = slot.parameter.detach()
        if not self.moves(slot):
            return weight.float()[None]
        assert self.direction is not None
        assert slot.param is not None
        out = self.scratch.take((len(self.rows), weight.numel()), torch.float32)
        if self.direction.gaussian:
            for run, scale in enumerate(self.rows.scales):
                self.direction.perturb(out[run], weight, slot.param, scale)
        else:
            kernels_for(weight.device).perturb_each(
                out,
                weight,
                seed=self.direction.seed,
                step=self.direction.step,
                param=slot.param,
                ks=self.rows.which_tensor + self.ks[0],
                scales=self.rows.scales_tensor,
            )
        return out

    def looked_up(self, slot: Slot, ids: Tensor, dtype: torch.dtype) -> Tensor:
        """Rows `ids` (runs, n) of a matrix, each as its run sees it: (runs * n, C).

        A row costs some hundred elements' work, the whole table millions.
        """
        weight = slot.parameter.detach()
        if not self.moves(slot):
            return weight[ids.reshape(-1)].to(dtype)
        assert self.direction is not None
        assert slot.param is not None
        if self.outer(slot):
            which, scales = self.rows.which_tensor[:, None], self.rows.scales_tensor[:, None]
            rows = weight[ids].float()
            amount = scales * self.factors.u(slot.param)[which, ids]
            rows += amount[..., None] * self.factors.v(slot.param)[which]
            return rows.view(-1, weight.shape[1]).to(dtype)
        out = torch.empty((ids.numel(), weight.shape[1]), dtype=dtype, device=weight.device)
        for run, (mine, found) in enumerate(
            zip(ids, torch.chunk(out, len(self.rows)), strict=True)
        ):
            z = replace(self.direction, k=self.ks[self.rows.which[run]])
            z.perturb_rows(found, weight, mine.contiguous(), slot.param, self.rows.scales[run])
        return out


def _factor_groups(leaves: Sequence[Leaf]) -> list[list[tuple[int, int, int]]]:
    """All factors of tuned matrices; the v of twins, which are multiplied with one input, together."""
    groups: list[list[tuple[int, int, int]]] = []
    seen: set[tuple[int, int]] = set()
    for leaf in leaves:
        matrices: dict[int, list[tuple[int, int, int]]] = {PURPOSE_U: [], PURPOSE_V: []}
        for twin in leaf.twins:
            for slot in leaves[twin].slots:
                if slot.param is None or slot.parameter.ndim != 2:
                    continue
                for purpose, length in zip(
                    (PURPOSE_U, PURPOSE_V), slot.parameter.shape, strict=True
                ):
                    if (slot.param, purpose) not in seen:
                        seen.add((slot.param, purpose))
                        matrices[purpose].append((slot.param, purpose, length))
        groups.extend(group for group in matrices.values() if group)
    return groups
