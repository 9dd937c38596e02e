"""What zo-adamm and fzoo promise beside their twins (test_rules.py)."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from statistics import stdev

import pytest
import torch
from pydantic import ValidationError
from support import small
from support.directions import direction
from support.optimizers import optimizer
from torch import Tensor, nn

from zoft.engine.optimizers.measurement import Measurement
from zoft.engine.optimizers.update import Resident, tuned_weights
from zoft.models.trainable import parameter_ids
from zoft.recipe.sections.optimizers.fzoo import FZOO
from zoft.runs.journal import read
from zoft.training.run import train

SEED = 3


def weights(values: Tensor) -> Resident:
    parameters = {"w": nn.Parameter(values.clone(), requires_grad=False)}
    return Resident(tuned_weights(parameters, parameter_ids(parameters), set()))


def moves(name: str, slopes: Sequence[tuple[float, ...]], lr: float = 1e-2) -> list[Tensor]:
    """How far each of the steps moves 1,000 weights."""
    rule = optimizer(weights(torch.zeros(1000)), name, seed=SEED)
    [tuned] = rule.weights
    positions = [tuned.data.clone()]
    for step, c in enumerate(slopes, 1):
        rule.update(Measurement(step, (0.0,), (0.0,), c), lr)
        positions.append(tuned.data.clone())
    return [after - before for before, after in pairwise(positions)]


def test_the_slopes_of_a_run_are_the_papers_losses_over_their_deviation(tmp_path: Path) -> None:
    recipe, folder = small.write(tmp_path), tmp_path / "run"
    changes = ["optimizer={name: fzoo, lr: 1e-3}", "train.steps=2", "~eval", "~data.eval"]
    train(str(recipe), [*changes, "model.compute_dtype=float32"], output_dir=str(folder))
    for line in read(folder / "journal.jsonl")[1]:
        c, losses = line.measurement.projected_grad, line.measurement.loss_plus
        [at_theta] = set(line.measurement.loss_minus)  # one-sided
        assert len(c) == len(losses) == 8
        for c_k, loss in zip(c, losses, strict=True):
            expected = (loss - at_theta) / stdev(losses)
            assert c_k / stdev(c) == pytest.approx(expected, abs=2e-2)


def test_a_step_of_fzoo_does_not_depend_on_the_size_of_the_losses() -> None:
    slopes = (3.0, -1.0, 0.5, 2.0)
    [small_], [large] = (moves("fzoo", [tuple(x * c for c in slopes)]) for x in (1.0, 1024.0))
    assert torch.equal(small_, large)
    assert small_.abs().max() > 1e-3


def test_equal_losses_move_nothing() -> None:
    still, moved = moves("fzoo", [(2.0, 2.0, 2.0), (2.0, 2.0, 3.0)])
    assert not still.any()
    assert moved.any()


def test_fzoo_refuses_a_single_loss() -> None:
    with pytest.raises(ValidationError, match="at least 2"):
        FZOO.model_validate({"directions": 1})


def test_after_a_large_slope_the_steps_of_zo_adamm_stay_short() -> None:
    steps = [(1.0,)] * 10 + [(100.0,)] + [(1.0,)] * 200
    found = [float(step.pow(2).mean().sqrt()) for step in moves("zo-adamm", steps)]
    assert found[-1] < 0.05 * found[9]


@pytest.mark.parametrize("name", ["zo-adamm", "fzoo"])
def test_a_quadratic_falls(name: str) -> None:
    curvature = torch.linspace(0.1, 2.0, 60)
    rule = optimizer(weights(torch.ones(60)), name, seed=SEED)
    [tuned] = rule.weights
    for step in range(1, 301):
        slopes = []
        for k in range(8):
            z = torch.zeros(60)
            direction(SEED, step, k).perturb(z, torch.zeros(60), tuned.param, 1.0)
            slopes.append(float((curvature * tuned.data * z).sum()))
        rule.update(Measurement(step, (0.0,), (0.0,), tuple(slopes)), 2e-2)
    assert (curvature * tuned.data**2).sum() < 0.2 * curvature.sum()
