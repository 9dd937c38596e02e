"""`zoft range`: its rule on quadratics, its arithmetic, and the whole of it on a tiny model."""

from __future__ import annotations

import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from support import small
from support.optimizers import SECTION

from zoft.cli.main import main
from zoft.engine.estimator import Estimator
from zoft.engine.range_probes import Rung, measure_rung, radius
from zoft.errors import RecipeError
from zoft.planning.resolve import resolve
from zoft.recipe.load import load_recipe
from zoft.training.range import rates
from zoft.training.range.rates import HEAD, TOLERANCE, advise, row, steps_walked, update_size


def recipe(**optimizer: Any) -> Any:
    """What advise reads of a recipe."""
    settings = {"lr": 1e-4, "perturbation": 1e-3, "scope": "batch", **optimizer}
    train = SimpleNamespace(steps=300, batch_size=16)
    return SimpleNamespace(optimizer=SECTION.validate_python(settings), train=train)


# -- the rule -----------------------------------------------------------------------------------


def last_loss(rate: float, steps: int, curvatures: np.ndarray, starts: int = 8) -> float:
    """Normalised steps along random signs (an update of RMS `rate` per weight) from one start."""
    random = np.random.default_rng(0)
    theta = np.ones((starts, len(curvatures)))
    for _ in range(steps):
        z = random.choice([-1.0, 1.0], theta.shape)
        slope = (curvatures * theta * z).sum(1, keepdims=True)
        theta -= rate * np.sign(slope) * z
    return float((curvatures * theta**2).sum(1).mean() / 2)


@pytest.mark.parametrize("steps", [10, 100, 1000])  # of 100 dimensions
def test_on_a_quadratic_the_rate_is_near_the_best(steps: int) -> None:
    curvatures = np.geomspace(0.1, 10, 100)
    lengths = np.geomspace(1e-3, 10, 9)
    rises = lengths**2 * curvatures.sum() / 2  # z^T H z of signs is the trace
    found = radius(lengths.tolist(), rises.tolist(), TOLERANCE * curvatures.sum() / 2)
    assert found is not None
    suggested = found / math.sqrt(steps)
    grid = suggested * 3.0 ** np.arange(-3, 3.5, 0.5)
    best = min(grid, key=lambda rate: last_loss(rate, steps, curvatures))
    assert best / 3.01 < suggested < best * 3.01


# -- the arithmetic -----------------------------------------------------------------------------


def test_how_far_the_steps_of_a_schedule_lead() -> None:
    assert steps_walked(recipe()) == pytest.approx(math.sqrt(300))
    assert steps_walked(recipe(schedule="linear")) == pytest.approx(math.sqrt(100), rel=0.01)


def test_the_size_of_an_update() -> None:
    assert update_size(recipe(), 5.0) == pytest.approx(math.sqrt(19))
    assert update_size(recipe(betas=(0.0, 0.99)), 5.0) == 1.0
    assert update_size(recipe(name="mezo"), 5.0) == 5.0
    assert update_size(recipe(name="mezo", scope="example", directions=4), 8.0) == 1.0


RUNGS = [
    Rung(1e-3, 2.0, 0.2, 0.1, (0.5e-3, 0.5e-3)),
    Rung(1e-2, 2.0, 0.1, 0.1, (0.05, 0.05)),
    Rung(1e-1, 2.0, 1.9, 1.0, (5.0, 20.0)),
]


def test_what_follows_from_the_rungs() -> None:
    advice = advise(recipe(), RUNGS, [1.0, 1.0])
    assert advice.best is RUNGS[1]
    assert advice.radius == pytest.approx(0.1 * math.sqrt(0.1 / 12.5), rel=0.2)
    assert advice.radius is not None
    low, middle, high = advice.lr
    assert low <= middle <= high
    assert middle == pytest.approx(advice.radius / math.sqrt(300 * 19))
    assert high == pytest.approx(0.1 * math.sqrt(0.1 / 5) / math.sqrt(300 * 19))


def test_no_finite_loss_is_said() -> None:
    broken = [Rung(1e-3, math.nan, math.nan, math.nan, (math.nan,))]
    with pytest.raises(RecipeError, match="no loss is finite"):
        advise(recipe(), broken, [math.nan])


def test_the_table_fits_80_columns() -> None:
    widest = Rung(1e-4, 123456.0, 12345.6, 99.0, (-12345.6,), 0.85)
    assert len(HEAD) <= 80
    assert len(row(widest)) <= 80
    assert row(widest).endswith("85%")
    broken = Rung(1e-1, math.nan, math.nan, math.nan, (math.nan,))
    assert len(row(broken)) <= 80
    assert row(broken).count("nan") == 6


# -- all of it ----------------------------------------------------------------------------------


@pytest.mark.parametrize("method", ["full", "lora"])
def test_it_ends_with_overrides_that_a_recipe_takes(
    method: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = str(small.write(tmp_path, method))
    before = {path.name for path in tmp_path.iterdir()}
    picture = tmp_path / "range.png"
    plot = ["--plot", str(picture)] if method == "full" else []
    assert main(["range", source, *plot]) == 0
    lines = capsys.readouterr().out.splitlines()
    table = [line for line in lines[lines.index(HEAD) :] if not line.startswith("plot: ")]
    assert max(map(len, table)) <= 80
    assert (
        len([line for line in lines if line[:12].strip()[1:] in ("e-04", "e-03", "e-02", "e-01")])
        == 7
    )
    overrides = next(line for line in lines if line.startswith("optimizer.lr=")).split()
    chosen = resolve(load_recipe(source, overrides)).optimizer
    assert isinstance(chosen.lr, float)
    assert 1e-6 < chosen.lr < 1
    assert chosen.perturbation in rates.LENGTHS
    left = {path.name for path in tmp_path.iterdir()} - before
    assert left == ({"range.png"} if plot else set())
    if plot:
        assert picture.read_bytes()[:4] == b"\x89PNG"


def test_a_plot_that_cannot_be_drawn_is_refused_at_once(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = str(small.write(tmp_path))
    assert main(["range", source, "--plot", "range.gif"]) == 2
    assert main(["range", source, "--plot", str(tmp_path / "no/range.png")]) == 4
    assert capsys.readouterr().err.count("error: --plot") == 2


def test_ctrl_c_is_heeded_between_batches(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def pressed(estimator: Estimator, length: float, losses: Any, at_rest: Any, check: Any) -> Rung:
        check.__self__.signal = 2
        return measure_rung(estimator, length, losses, at_rest, check)

    monkeypatch.setattr(rates, "measure_rung", pressed)
    source = str(small.write(tmp_path))
    capsys.readouterr()
    assert main(["range", source]) == 130
    assert capsys.readouterr().err == "error: stopped by SIGINT\n"
