from __future__ import annotations

import math

import pytest

from zoft.engine.optimizers.measurement import rms


def test_the_root_mean_square_is_nan_if_a_value_is_not_finite() -> None:
    assert rms([3.0, -4.0]) == pytest.approx(math.sqrt(12.5))
    assert math.isnan(rms([3.0, None]))
    assert math.isnan(rms([3.0, math.nan]))
    assert math.isnan(rms([]))
