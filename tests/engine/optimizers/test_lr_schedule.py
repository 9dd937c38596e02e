from __future__ import annotations

import json
import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from zoft.engine.optimizers.lr_schedule import learning_rate

SCHEDULES = ("constant", "linear", "cosine")


def rates(schedule: Any, steps: int, warmup_steps: int, lr: float = 1.0) -> list[float]:
    return [
        learning_rate(step, lr=lr, steps=steps, schedule=schedule, warmup_steps=warmup_steps)
        for step in range(1, steps + 1)
    ]


def test_by_hand() -> None:
    assert rates("constant", 3, 0) == [1.0, 1.0, 1.0]
    assert rates("linear", 4, 0) == [1.0, 0.75, 0.5, 0.25]
    assert rates("linear", 6, 2) == [0.5, 1.0, 1.0, 0.75, 0.5, 0.25]
    cosine = [(1 + math.cos(math.pi * x / 4)) / 2 for x in range(4)]
    assert rates("cosine", 4, 0) == pytest.approx(cosine, rel=1e-6)
    assert rates("constant", 3, 5) == pytest.approx([0.2, 0.4, 0.6])  # never warm


@given(
    schedule=st.sampled_from(SCHEDULES),
    steps=st.integers(1, 60),
    warmup_steps=st.integers(0, 70),
    lr=st.floats(1e-8, 1.0),
)
def test_rises_to_lr_then_never_rises_and_never_reaches_zero(
    schedule: str, steps: int, warmup_steps: int, lr: float
) -> None:
    found = rates(schedule, steps, warmup_steps, lr)
    warm, after = found[:warmup_steps], found[warmup_steps:]
    assert warm == sorted(warm)
    assert after == sorted(after, reverse=True)
    assert all(0 < rate <= np.float32(lr) for rate in found)
    if after:
        assert np.float32(after[0]) == np.float32(lr)
    if len(after) > 1 and schedule != "constant":
        assert after[-1] < after[0]


@given(schedule=st.sampled_from(SCHEDULES), lr=st.floats(1e-8, 1.0), steps=st.integers(1, 60))
def test_a_rate_is_a_float32_in_its_shortest_form(schedule: str, lr: float, steps: int) -> None:
    for rate in rates(schedule, steps, 0, lr):
        assert float(str(np.float32(rate))) == rate
        assert len(json.dumps(rate)) <= 14


def test_a_round_rate_stays_round() -> None:
    assert json.dumps(rates("constant", 1, 0, 3e-4)) == "[0.0003]"
