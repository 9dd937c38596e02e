"""Known answers of Random123, and the statistics of the directions made from them."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from zoft.engine.kernels import reference
from zoft.engine.kernels.cpu import probe as compiled
from zoft.engine.kernels.numerics import gaussian as normal
from zoft.system import philox

KNOWN = [
    ((0,) * 4, (0, 0), "6627e8d5 e169c58d bc57ac4c 9b00dbd8"),
    ((0xFFFFFFFF,) * 4, (0xFFFFFFFF,) * 2, "408f276d 41c83b0e a20bc7c6 6d5451fd"),
    (
        (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
        (0xA4093822, 0x299F31D0),
        "d16cfe09 94fdcceb 5001e420 24126ea1",
    ),
]


@pytest.mark.parametrize(("counter", "key", "answer"), KNOWN)
def test_known_answers(
    counter: tuple[int, int, int, int], key: tuple[int, int], answer: str
) -> None:
    expected = [int(word, 16) for word in answer.split()]
    assert philox.philox4x32(counter, key).tolist() == expected
    block = torch.tensor([counter[0] | counter[1] << 32] if counter[1] < 2**31 else
                         [(counter[0] | counter[1] << 32) - 2**64])  # fmt: skip
    if counter[1] < 2**31:  # int64 block numbers never reach the others
        words = [
            reference.philox_word(block, torch.tensor([i]), *key, counter[2], counter[3]).item()
            for i in range(4)
        ]
        assert words == expected


def test_the_compiled_generator_equals_numpy() -> None:
    seed, step, param, last, tile = 2**32 - 1, 12345, 0x9ABCDEF0, 1 << 24 | 3, 2**34 + 9
    words = np.empty(256, np.uint32)
    compiled.philox_words(words, seed, step, param, last, tile)
    blocks = tile * 64 + np.arange(64)
    counter = np.stack(
        [blocks & 0xFFFFFFFF, blocks >> 32, np.full(64, param), np.full(64, last)], axis=-1
    )
    expected = philox.philox4x32(counter, (seed, step))  # (call b, output j)
    assert np.array_equal(words.reshape(4, 64), expected.T)


def test_draw64_depends_on_its_address_and_has_no_repeats() -> None:
    first = philox.draw64(1, 2, philox.PURPOSE_ORDER, 1001)
    assert np.array_equal(first[:500], philox.draw64(1, 2, philox.PURPOSE_ORDER, 500))
    for other in [(2, 2, philox.PURPOSE_ORDER), (1, 3, philox.PURPOSE_ORDER), (1, 2, 5)]:
        assert not np.intersect1d(first, philox.draw64(*other, 1001)).size
    assert len(np.unique(first)) == 1001


def test_a_direction_number_beyond_its_field_is_refused() -> None:
    with pytest.raises(ValueError, match="2\\*\\*24"):
        philox.last_word(philox.PURPOSE_DENSE, 1 << 24)


def test_the_gaussian_table_is_symmetric_with_unit_variance() -> None:
    table = normal.table()
    assert np.array_equal(table, -table[::-1])
    assert np.all(np.diff(table) > 0)
    assert float(np.var(table.astype(np.float64))) == pytest.approx(1.0, abs=2e-4)
    scaled = table.astype(np.float64) / normal.GRID
    assert np.array_equal(scaled, np.rint(scaled))
    assert np.abs(scaled).max() < 2**24


@pytest.mark.parametrize("gaussian", [False, True])
def test_directions_of_different_addresses_are_uncorrelated(gaussian: bool) -> None:
    n = 100_000
    elements = torch.arange(n)
    base = {"seed": 1, "step": 1, "param": 1, "k": 0}
    variants = [base] + [{**base, name: 2} for name in base]
    z = torch.stack([reference.direction(elements, **v, gaussian=gaussian) for v in variants])
    correlation = (z @ z.T) / n
    assert torch.allclose(correlation, torch.eye(len(variants)), atol=5 / n**0.5)
