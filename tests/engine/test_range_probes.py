"""Rungs of known shape: errors of slopes, and how far is far."""

from __future__ import annotations

import math

import pytest

from zoft.engine.range_probes import Rung, best_perturbation, radius


def rung(perturbation: float, noise: float, bias: float = 0.0) -> Rung:
    return Rung(perturbation, 1.0, noise, bias, (0.0,))


def test_an_error_is_noise_and_a_third_of_the_bias_at_twice_the_length() -> None:
    assert rung(1e-3, 0.2).error == pytest.approx(0.2)
    assert rung(1e-3, 0.0, 0.3).error == pytest.approx(0.1)
    # What noise alone makes of the change at twice the length is no bias.
    assert rung(1e-3, 0.2, 0.2 * math.sqrt(1.25)).error == pytest.approx(0.2)


def test_noise_and_bias_of_a_cubic_are_found_out() -> None:
    """l(x) = x + x**3 along z: c(e) = 1 + e**2, so its bias is e**2 of 1."""
    e = 0.1
    c, wide = 1 + e**2, 1 + 4 * e**2
    assert Rung(e, c, 0.0, abs(c - wide) / c, (0.0,)).error == pytest.approx(e**2 / c)


def test_curvature_is_the_second_difference() -> None:
    assert Rung(1e-2, 1.0, 0.1, 0.0, (3e-4, 5e-4)).curvature == pytest.approx(2 * 4e-4 / 1e-4)


def test_the_least_error_is_taken_and_the_recipes_own_if_it_is_nearly_as_small() -> None:
    rungs = [rung(1e-4, 0.9), rung(1e-3, 0.14), rung(1e-2, 0.1), rung(1e-1, 0.5)]
    assert best_perturbation(rungs, 1e-4) is rungs[2]
    assert best_perturbation(rungs, 1e-3) is rungs[1]


def test_rungs_that_are_not_finite_are_passed_over() -> None:
    broken = Rung(1e-1, math.nan, math.nan, math.nan, (math.nan,))
    assert best_perturbation([broken, rung(1e-2, 0.3)], 1e-1) == rung(1e-2, 0.3)
    assert best_perturbation([broken], 1e-1) is None


LENGTHS = (1e-3, 1e-2, 1e-1)


@pytest.mark.parametrize(
    ("rises", "expected"),
    [
        ((0.5e-4, 0.5e-2, 0.5), math.sqrt(2 * 0.02)),  # quadratic, one half of the square
        ((0.0, 0.0, 100.0), 1e-2),  # not back to what was seen to be harmless
        ((0.08, 8.0, 800.0), 1e-3 * math.sqrt(0.02 / 0.08)),  # the first is too far already
        ((0.0, math.nan, math.nan), 1e-3),
        ((math.inf, math.inf, math.inf), 1e-3),
        ((-0.1, 0.0, 0.01), None),
    ],
)
def test_how_far_a_random_step_may_go(rises: tuple[float, ...], expected: float | None) -> None:
    lengths = tuple(1.0 * x for x in LENGTHS)
    if expected is not None and rises[0] == 0.5e-4:
        lengths, expected = (1e-2, 1e-1, 1.0), 0.2  # rise = length**2 / 2
    assert radius(lengths, rises, 0.02) == (None if expected is None else pytest.approx(expected))
