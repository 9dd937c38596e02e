"""Tuned weights of which some are streamed: those get an update when they are next fetched."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from torch import Tensor

from zoft.engine.offload.streamer import Streamer
from zoft.engine.optimizers.update import Resident, Tuned, Update
from zoft.models.storage.safetensors import Stored


class Streamed:
    """`Weights` of a streamed model. Nobody sees a weight that lacks an update: a fetch brings it up
    to date before anything reads it."""

    def __init__(self, tuned: Sequence[Tuned], streamer: Streamer) -> None:
        self.tuned, self.streamer = list(tuned), streamer
        self.names: tuple[str, ...] = ()
        elsewhere = {id(moving.parameter) for moving in streamer.tuned.values()}
        self.resident = Resident([t for t in tuned if id(t.parameter) not in elsewhere])

    def __iter__(self) -> Iterator[Tuned]:
        return iter(self.tuned)

    def keep(self, *names: str) -> None:
        """See `Weights`; the blocks' arenas were made for the same names."""
        assert names == self.streamer.kept, "the arenas have no room for it"
        self.names = names
        self.resident.keep(*names)

    def apply(self, update: Update) -> None:
        """Update what is resident at once, and the rest when it is next fetched."""
        self.resident.apply(update)
        self.streamer.enqueue_update(update)

    def visits(self) -> Iterator[Mapping[str, Tensor]]:
        """See `Weights`: first all that is resident, then block by block."""
        yield from self.resident.visits()
        for block in self.streamer.visits():
            yield self.streamer.kept_of(block)

    def load(self, stored: Mapping[str, Stored]) -> None:
        """Of the resident weights; what is kept of streamed ones comes with their blocks."""
        self.resident.load(stored)
