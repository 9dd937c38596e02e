"""Projected gradients and the look at their noise."""

from __future__ import annotations

import math

import pytest
import tiny
import torch

from zoft.models.tuned import parameter_ids, tuned_parameters
from zoft.recipe.schema import TuneSection
from zoft.zo.diagnostics import measure_delivery, measure_noise
from zoft.zo.estimators import Estimator
from zoft.zo.probe import View

INPUT = torch.arange(20).view(2, 10) * 11 % tiny.VOCABULARY
POSITIONS = torch.arange(20)


def setup(compute=torch.float32, **settings):
    model = tiny.llama()
    tuned = tuned_parameters(model, TuneSection())
    view = View(model, tuned, parameter_ids(tuned), compute, INPUT[:1])
    values = {"seed": 3, "gaussian": False, "perturbation": 1e-3, **settings}
    estimator = Estimator(view, **values)

    def loss():
        logits = view.logits(INPUT, POSITIONS).float()
        return torch.nn.functional.cross_entropy(logits, INPUT.view(-1)).double().item()

    return model, view, estimator, loss, tuned


@pytest.mark.parametrize("sides", [1, 2])
@pytest.mark.parametrize("gaussian", [False, True])
def test_c_is_the_gradient_along_z(sides, gaussian):
    model, _, estimator, loss, tuned = setup(
        directions=3, sides=sides, gaussian=gaussian, perturbation=2e-4
    )
    model.requires_grad_(True)
    with torch.enable_grad():
        logits = model(input_ids=INPUT).logits.view(-1, tiny.VOCABULARY)
        torch.nn.functional.cross_entropy(logits, INPUT.view(-1)).backward()
    ids = parameter_ids(tuned)
    found = estimator.measure(4, loss)
    assert found.finite
    for k, c in enumerate(found.projected_grad):
        z = estimator.direction(4, k)
        exact = sum(float((p.grad * z.values(p.data, ids[n])).sum()) for n, p in tuned.items())
        # one-sided, the curvature along z stays in: epsilon z.H z / 2
        assert c == pytest.approx(exact, rel=0.05, abs=0.05 if sides == 2 else 0.2)
    if sides == 1:
        assert len(set(found.loss_minus)) == 1


def test_everything_measured_is_a_float32():
    _, _, estimator, loss, _ = setup(directions=2)
    found = estimator.measure(1, loss)
    for value in (*found.loss_plus, *found.loss_minus, *found.projected_grad):
        assert value == float(str(torch.tensor(value, dtype=torch.float32).numpy()))


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_loss_that_is_not_finite_is_seen(bad):
    _, _, estimator, loss, _ = setup()
    assert not estimator.measure(1, lambda: bad).finite
    assert estimator.measure(1, loss).finite


def test_noise_is_small_in_float32_and_larger_in_bfloat16():
    _, _, exact, loss, _ = setup()
    clean = measure_noise(exact, loss)
    assert clean.signal_to_noise > 20
    assert clean.bias < 0.2
    _, _, coarse, loss, _ = setup(torch.bfloat16)
    assert measure_noise(coarse, loss).signal_to_noise < clean.signal_to_noise


def test_delivery_tells_when_rounding_swallows_the_probe():
    _, view, estimator, loss, _ = setup(torch.bfloat16)
    z = estimator.direction(0, 0)
    estimator.loss_at(z, 1e-3, loss)  # shows in which type each matrix is used
    good, bad = (measure_delivery(view, z, e) for e in (1e-2, 1e-6))
    assert good.lost < 0.02
    assert good.gain == pytest.approx(1, abs=0.05)
    assert bad.lost > 0.8
    _, exact, estimator, loss, _ = setup()
    estimator.loss_at(z, 1e-3, loss)
    assert measure_delivery(exact, z, 1e-3) is None  # float32 loses nothing worth a word
