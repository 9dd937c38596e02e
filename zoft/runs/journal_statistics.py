"""What the journal's numbers look like: how many steps, how large their slopes."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True)
class Statistics:
    """`nonfinite` of the `steps` changed nothing. `sizes` are |c| of all directions, ascending."""

    steps: int
    nonfinite: int
    slopes: int
    positive: int
    sizes: Sequence[float]

    def quantile(self, share: float) -> float:
        """The size below which this share of all slopes lies (nearest rank)."""
        return self.sizes[min(len(self.sizes) - 1, int(share * len(self.sizes)))]


def read_statistics(path: Path) -> Statistics:
    """Of journal.jsonl; a torn last line is left out. Raises OSError, ValueError."""
    steps = nonfinite = 0
    slopes: list[float] = []
    with path.open("rb") as file:
        next(file, None)  # the header
        for line in file:
            if not line.endswith(b"\n"):
                break
            values = json.loads(line)["projected_grad"]
            steps += 1
            if None in values:
                nonfinite += 1
            else:
                slopes += values
    sizes = sorted(map(abs, slopes))
    return Statistics(steps, nonfinite, len(slopes), sum(c > 0 for c in slopes), sizes)
