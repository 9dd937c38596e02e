from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from support.recipes import recipe as minimal

from zoft.planning.resolve import resolve
from zoft.planning.rounding import diffusion, mean_ulp
from zoft.recipe.resolved import Resolved


def recipe(dtype: str, **optimizer: Any) -> Resolved:
    settings = {"lr": 1e-5, **optimizer}
    train = {"steps": 400, "batch_size": 4}
    return resolve(minimal(model={"dtype": dtype}, optimizer=settings, train=train))


def test_float32_has_none() -> None:
    assert diffusion(recipe("float32"), 0.02) is None


@pytest.mark.parametrize(("dtype", "mantissa"), [("bfloat16", 7), ("float16", 10)])
def test_the_mean_spacing_is_torchs(dtype: str, mantissa: int) -> None:
    generator = torch.Generator().manual_seed(0)
    w = torch.randn(100_000, generator=generator).abs().mul_(0.02).to(getattr(torch, dtype))
    up = (w.view(torch.int16) + 1).view(w.dtype)
    spacing = (up.double() - w.double()).mean().item()
    assert mean_ulp(0.02, mantissa) == pytest.approx(spacing, rel=0.02)


def share_below(size: float, rms: float) -> float:
    return math.erf(size / rms / math.sqrt(2))


@pytest.mark.parametrize("rms", [1e-3, 0.0173, 2.0**-6, 0.02, 0.9])
def test_the_mean_spacing_is_that_of_quantiles_found_by_bisection(rms: float) -> None:
    total = 0.0
    for i in range(512):
        low, high = 0.0, 6 * rms
        for _ in range(40):
            middle = (low + high) / 2
            below = share_below(middle, rms) < (i + 0.5) / 512
            low, high = (middle, high) if below else (low, middle)
        total += 2.0 ** (math.floor(math.log2(low)) - 7)
    assert mean_ulp(rms, 7) == total / 512


@pytest.mark.parametrize("seed", [0, 1])
def test_it_is_what_stochastic_rounding_does(seed: int) -> None:
    """Steps of random signs, rounded to bfloat16 up or down by chance, against the same in float64."""
    steps, length, rms = 400, 1e-5, 0.02
    generator = torch.Generator().manual_seed(seed)
    exact = (torch.randn(20_000, generator=generator) * rms).bfloat16().double()
    rounded = exact.clone()
    for _ in range(steps):
        move = length * (2 * torch.randint(2, exact.shape, generator=generator) - 1)
        exact = exact + move
        wanted = rounded + move
        ulp = 2.0 ** (torch.floor(torch.log2(wanted.abs())) - 7)
        below = torch.floor(wanted / ulp) * ulp
        up = (
            torch.rand(exact.shape, generator=generator, dtype=torch.float64) * ulp < wanted - below
        )
        rounded = below + ulp * up
    measured = (rounded - exact).square().mean().sqrt().item()
    found = diffusion(recipe("bfloat16", fold_momentum=False), rms)
    assert found is not None
    assert found.rounding == pytest.approx(measured, rel=0.1)
    assert found.update == pytest.approx(math.sqrt(steps) * length)


def test_folded_momentum_steps_farther_and_a_falling_rate_less() -> None:
    plain = diffusion(recipe("bfloat16", fold_momentum=False), 0.02)
    folded = diffusion(recipe("bfloat16"), 0.02)
    falling = diffusion(recipe("bfloat16", fold_momentum=False, schedule="linear"), 0.02)
    assert plain
    assert folded
    assert falling
    assert folded.update == pytest.approx(math.sqrt(19) * plain.update)
    assert falling.update < plain.update
    assert falling.rounding < plain.rounding


def test_mezo_says_that_its_steps_depend_on_c() -> None:
    found = diffusion(recipe("float16", name="mezo"), 0.02)
    assert found
    assert "|c| 1" in found.assumed
