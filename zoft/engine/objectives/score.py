"""What a forward pass over some examples amounts to."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Score:
    """Sums over examples, in float64, so that parts add up in any split: loss, weight, hits.

    `weight` counts supervised tokens (`lm`) or examples (`choice`); `hits` is None without labels.
    """

    loss: float
    weight: float
    hits: int | None = None

    def __add__(self, other: Score) -> Score:
        hits = None if self.hits is None or other.hits is None else self.hits + other.hits
        return Score(self.loss + other.loss, self.weight + other.weight, hits)

    @property
    def mean(self) -> float:
        return self.loss / self.weight

    @property
    def accuracy(self) -> float | None:
        return None if self.hits is None else self.hits / self.weight
