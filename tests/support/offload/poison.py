"""Poison: buffers full of NaN wherever a plan leaves nothing to read."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from zoft.engine.offload.executor import Work
from zoft.engine.offload.operations import Op
from zoft.engine.offload.streamer import Streamer

POISON: Any = "poison"  # a kind of operation that only tests have


def poisoned(op: Op) -> list[Op]:
    """The operation, with one that overwrites its buffer before it is filled, or after its last use.

    Slots and stagings are overwritten before they are filled, a staging also once it is written home:
    who reads it too early or too late finds no weights. What the operation waited for, or recorded,
    is moved to the one that now stands there.
    """
    if op.kind in ("read", "upload"):
        return [replace(op, kind=POISON, reads=(), records=None), replace(op, waits=())]
    if op.kind == "write" and op.staging >= 0:
        staging = ("staging", op.staging)
        spoil = replace(op, kind=POISON, reads=(), writes=(staging,), waits=())
        return [replace(op, records=None), spoil]
    return [op]


class PoisonedStreamer(Streamer):
    """A streamer that fills slots and stagings with NaN as `poisoned` says."""

    def _submit(self, ops: Sequence[Op]) -> None:
        super()._submit([part for op in ops for part in poisoned(op)])

    def _work(self, op: Op) -> Work:
        if op.kind != POISON:
            return super()._work(op)
        name, number = op.writes[0]
        target = (self.stagings if name == "staging" else self._slots)[number]
        return lambda: target.fill_(0xFF)
