"""Several sources as one set: whole and in order, or in the shares that their weights say.

With weights w_i, sources of n_i examples, N in all, contribute m_i = N w_i / sum(w), rounded so that
the m_i add up to N (largest remainders first). A source is repeated m_i // n_i times, and m_i % n_i of
its examples, drawn by (seed, number of the source), come once more. It keeps its order.
"""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction

import numpy as np

from zoft.data.examples import Example
from zoft.system.philox import PURPOSE_SHARE, draw64


def mixed(
    sources: Sequence[Sequence[Example]], weights: Sequence[float | None], seed: int
) -> list[list[Example]]:
    """What each source contributes. A weight that is None stands for the source's size."""
    sizes = [len(source) for source in sources]
    shares = apportioned(
        sizes, [n if w is None else w for n, w in zip(sizes, weights, strict=True)]
    )
    return [
        [source[i] for i in taken(len(source), share, seed, number)]
        for number, (source, share) in enumerate(zip(sources, shares, strict=True))
    ]


def apportioned(sizes: Sequence[int], weights: Sequence[float]) -> list[int]:
    """sum(sizes) dealt out in proportion to the weights."""
    total, whole = sum(sizes), sum(map(Fraction, weights))
    exact = [total * Fraction(weight) / whole for weight in weights]
    shares = [int(share) for share in exact]
    by_remainder = sorted(range(len(exact)), key=lambda i: shares[i] - exact[i])
    for i in by_remainder[: total - sum(shares)]:
        shares[i] += 1
    return shares


def taken(size: int, share: int, seed: int, source: int) -> list[int]:
    """The numbers of the `share` examples that a source of `size` gives, in order."""
    times, more = divmod(share, size)
    drawn = np.argsort(draw64(seed, source, PURPOSE_SHARE, size), kind="stable")[:more].tolist()
    return sorted([*range(size)] * times + drawn)
