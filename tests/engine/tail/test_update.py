"""The tail's update rule beside torch's Adafactor, and its rounding."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from zoft.engine.tail.update import FactoredRMS, stochastically


@pytest.mark.parametrize("shape", [(6, 4), (3, 5, 4), (7,)])
def test_steps_are_adafactors(shape: tuple[int, ...]) -> None:
    drawn = torch.Generator().manual_seed(0)
    ours, theirs = (
        torch.randn(shape, generator=torch.Generator().manual_seed(1)) for _ in range(2)
    )
    twin = torch.nn.Parameter(theirs)
    # Its rate is max(eps2, RMS of the weights) * min(lr, 1/sqrt(t)): the second is lr here.
    reference: Any = torch.optim.Adafactor([twin], lr=1e-3, eps=(None, 1e-30), beta2_decay=-0.8)
    rule = FactoredRMS(seed=3)
    for step in range(1, 6):
        gradient = torch.randn(shape, generator=drawn)
        size = max(1e-30, float(twin.detach().norm() / twin.numel() ** 0.5))
        twin.grad = gradient.clone()
        reference.step()
        rule.move("w", ours, gradient, step, 1e-3 * size)
    torch.testing.assert_close(ours, twin.detach(), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_rounding_is_right_on_average_and_goes_to_a_neighbour(dtype: torch.dtype) -> None:
    wanted = torch.tensor([1.0 + 2**-10, -3.0 - 2**-9, 0.3, 0.0, 5.0])
    chance = (torch.arange(4000) + 0.5) / 4000
    rounded = stochastically(wanted.expand(4000, 5), dtype, chance[:, None]).float()
    torch.testing.assert_close(rounded.mean(0), wanted, rtol=1e-4, atol=0)
    gap = torch.finfo(dtype).eps * wanted.abs() * 2
    assert bool(((rounded - wanted).abs() <= gap).all())


def test_steps_below_the_gap_add_up() -> None:
    weight = torch.ones(4000, dtype=torch.bfloat16)
    rule = FactoredRMS(seed=0)
    for step in range(1, 21):
        rule.move("w", weight, torch.ones(4000), step, 1e-4)
    assert float(weight.float().mean()) == pytest.approx(1 - 20e-4, abs=3e-4)


def test_equal_steps_give_equal_bytes() -> None:
    weights = []
    for _ in range(2):
        rule, weight = FactoredRMS(seed=1), torch.ones(50, 8, dtype=torch.bfloat16)
        drawn = torch.Generator().manual_seed(2)
        for step in range(1, 4):
            rule.move("w", weight, torch.randn(50, 8, generator=drawn), step, 1e-3)
        weights.append(weight)
    assert torch.equal(*weights)
