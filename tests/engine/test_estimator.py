"""Projected gradients and the look at their noise."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from support import tiny
from support.directions import directions
from support.mixing import BatchMean, TimeFirst
from torch import Tensor, nn
from transformers import LlamaForCausalLM

from zoft.engine.diagnostics import (
    LOUD,
    examples_agree,
    measure_delivery,
    measure_noise,
    pairs_agree,
)
from zoft.engine.estimator import Estimator, Losses
from zoft.engine.optimizers.update import Resident
from zoft.engine.probe.directions import Direction
from zoft.engine.probe.rows import MixedRows
from zoft.engine.probe.structures.table import values_of
from zoft.engine.probe.view import ProbedModel
from zoft.models.trainable import parameter_ids, tuned_parameters
from zoft.recipe.sections.tune import TuneSection

INPUT = torch.arange(20).view(2, 10) * 11 % tiny.VOCABULARY
POSITIONS = torch.arange(20)


def setup(
    compute: torch.dtype = torch.float32, kind: str = "signs", **settings: Any
) -> tuple[LlamaForCausalLM, ProbedModel, Estimator, Callable[[], Losses], dict[str, nn.Parameter]]:
    model = tiny.llama()
    tuned = tuned_parameters(model, TuneSection())
    view = ProbedModel(model, tuned, parameter_ids(tuned), compute, INPUT[:1])
    estimator = Estimator(view, directions(3, kind), **{"perturbation": 1e-3, **settings})

    def losses() -> Losses:
        """Each row is an example of ten tokens."""
        found = view.token_losses(INPUT, POSITIONS, INPUT.view(-1)).double()
        sums = found.view(-1, 2, 10).sum(-1)
        return Losses(sums, torch.full((2,), 10.0, dtype=torch.float64))

    return model, view, estimator, losses, tuned


def gradients(model: nn.Module, rows: list[int]) -> dict[str, Tensor]:
    """The gradient of the mean loss of some rows, by backpropagation."""
    model.requires_grad_(True)
    with torch.enable_grad():
        logits = model(input_ids=INPUT[rows]).logits.view(-1, tiny.VOCABULARY)
        loss = torch.nn.functional.cross_entropy(logits, INPUT[rows].view(-1))
        names, weights = zip(*model.named_parameters(), strict=True)
        found = torch.autograd.grad(loss, weights)
    model.requires_grad_(False)
    return dict(zip(names, found, strict=True))


def slope(found: dict[str, Tensor], tuned: dict[str, nn.Parameter], z: Direction) -> float:
    ids = parameter_ids(tuned)
    return sum(float((found[n] * values_of(z, p.data, ids[n])).sum()) for n, p in tuned.items())


@pytest.mark.parametrize(("sides", "paired"), [(1, False), (2, False), (2, True)])
@pytest.mark.parametrize("kind", ["signs", "gaussian", "rank1"])
def test_c_is_the_gradient_along_z(sides: int, paired: bool, kind: str) -> None:
    model, _, estimator, loss, tuned = setup(
        count=3, sides=sides, paired=paired, kind=kind, perturbation=2e-4,
    )  # fmt: skip
    whole = gradients(model, [0, 1])
    found = estimator.measure(4, loss)
    assert found.finite
    assert len(found.projected_grad) == len(found.loss_plus) == len(found.loss_minus) == 3
    for k, c in enumerate(found.projected_grad):
        exact = slope(whole, tuned, estimator.direction(4, k))
        # one-sided, the curvature along z stays in: epsilon z.H z / 2
        assert c == pytest.approx(exact, rel=0.05, abs=0.05 if sides == 2 else 0.2)
    if sides == 1:
        assert len(set(found.loss_minus)) == 1


@pytest.mark.parametrize(("sides", "paired"), [(1, False), (2, False), (2, True)])
def test_every_example_has_its_own_c(sides: int, paired: bool) -> None:
    model, _, estimator, loss, tuned = setup(
        count=3, sides=sides, paired=paired, kind="rank1", examples=2, perturbation=2e-4
    )
    found = estimator.measure(4, loss)
    assert len(found.projected_grad) == 6
    assert len(found.loss_plus) == len(found.loss_minus) == 3
    for k in range(3):
        for i in range(2):
            exact = slope(gradients(model, [i]), tuned, estimator.direction(4, 2 * k + i))
            c = found.projected_grad[2 * k + i]
            assert c == pytest.approx(exact, rel=0.05, abs=0.05 if sides == 2 else 0.2)


def weighted(*passes: list[list[float]]) -> Callable[[], Losses]:
    """Losses of two examples, of three tokens and of one, as passes would give them one by one."""
    remaining = iter(passes)
    weights = torch.tensor([3.0, 1.0], dtype=torch.float64)
    return lambda: Losses(torch.tensor(next(remaining), dtype=torch.float64), weights)


@pytest.mark.parametrize("paired", [False, True])
def test_tokens_count_alike_in_a_batch_and_examples_have_means_of_their_own(paired: bool) -> None:
    both = [[6.0, 5.0], [3.0, 1.0]]
    passes = [both] if paired else [[row] for row in both]
    settings: dict[str, Any] = {"perturbation": 0.25, "paired": paired, "kind": "rank1"}
    shared = setup(**settings)[2].measure(1, weighted(*passes))
    assert (shared.loss_plus, shared.loss_minus) == ((11 / 4,), (1.0,))
    assert shared.projected_grad == (3.5,)
    own = setup(**settings, examples=2)[2].measure(1, weighted(*passes))
    assert (own.loss_plus, own.loss_minus) == ((11 / 4,), (1.0,))
    assert own.projected_grad == (2.0, 8.0)  # (6 - 3) / 3 / 0.5, (5 - 1) / 0.5


def test_one_sided_probes_share_a_loss_at_theta() -> None:
    passes = weighted([[3.0, 1.0]], [[6.0, 5.0]], [[3.0, 2.0]])
    found = setup(sides=1, count=2, perturbation=0.5, kind="rank1", examples=2)[2].measure(
        1, passes
    )
    assert found.loss_minus == (1.0, 1.0)
    assert found.projected_grad == (2.0, 8.0, 0.0, 2.0)


def test_everything_measured_is_a_float32() -> None:
    _, _, estimator, loss, _ = setup(count=2)
    found = estimator.measure(1, loss)
    for value in (*found.loss_plus, *found.loss_minus, *found.projected_grad):
        assert value == float(str(torch.tensor(value, dtype=torch.float32).numpy()))


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_loss_that_is_not_finite_is_seen(bad: float) -> None:
    for examples in (None, 2):
        _, _, estimator, loss, _ = setup(kind="rank1", examples=examples)
        spoilt = weighted([[1.0, 1.0]], [[1.0, bad]])
        assert not estimator.measure(1, spoilt).finite
        assert estimator.measure(1, loss).finite


@pytest.mark.parametrize("sides", [1, 2])
@pytest.mark.parametrize("kind", [{}, {"kind": "rank1"}, {"kind": "rank1", "examples": 2}])
def test_noise_is_small_in_float32_and_larger_in_bfloat16(kind: dict[str, Any], sides: int) -> None:
    _, _, exact, loss, _ = setup(**kind, sides=sides)
    clean = measure_noise(exact, loss)
    assert clean.signal_to_noise > 20
    assert clean.bias < 0.2
    _, _, coarse, loss, _ = setup(torch.bfloat16, **kind, sides=sides)
    assert measure_noise(coarse, loss).signal_to_noise < clean.signal_to_noise


def test_delivery_tells_when_rounding_swallows_the_probe() -> None:
    _, view, estimator, loss, _ = setup(torch.bfloat16)
    z = estimator.direction(0, 0)
    estimator.slopes(z, 1e-3, loss)  # shows in which type each matrix is used
    good, bad = (measure_delivery(view, Resident([]), z, e) for e in (1e-2, 1e-6))
    assert good is not None
    assert bad is not None
    assert good.lost < 0.02
    assert good.gain == pytest.approx(1, abs=0.05)
    assert bad.lost > 0.8
    _, exact, estimator, loss, _ = setup()
    estimator.slopes(z, 1e-3, loss)
    assert (
        measure_delivery(exact, Resident([]), z, 1e-3) is None
    )  # float32 loses nothing worth a word


def test_rank_one_probes_deliver_whatever_the_type() -> None:
    _, view, estimator, loss, _ = setup(torch.bfloat16, kind="rank1")
    z = estimator.direction(0, 0)
    estimator.slopes(z, 1e-3, loss)
    assert (
        measure_delivery(view, Resident([]), z, 1e-3) is None
    )  # they are added inside the products


F32, BF16 = torch.float32, torch.bfloat16


@pytest.mark.parametrize(
    ("wrapper", "compute"),
    # Another direction than one's own changes the loss by less than bfloat16's tolerance.
    [(None, F32), (None, BF16), (BatchMean, F32), (BatchMean, BF16), (TimeFirst, F32)],
)
@pytest.mark.parametrize(("kind", "examples"), [("signs", None), ("rank1", None), ("rank1", 2)])
def test_a_model_that_mixes_rows_is_seen(
    wrapper: type[nn.Module] | None, kind: str, examples: int | None, compute: torch.dtype
) -> None:
    model = tiny.llama()
    model.lm_head.weight.mul_(30)  # losses that differ
    if wrapper:
        model.model.layers[0].mlp = wrapper(model.model.layers[0].mlp)
    tuned = tuned_parameters(model, TuneSection())
    view = ProbedModel(model, tuned, parameter_ids(tuned), compute, INPUT[:1])
    estimator = Estimator(view, directions(3, kind), perturbation=0.05 / LOUD, examples=examples)

    def losses(rows: list[int], width: int) -> Losses:
        """What these rows of `width` tokens lose."""
        ids = INPUT[rows, :width]
        positions = torch.arange(ids.numel())
        found = view.token_losses(ids, positions, ids.flatten()).double()
        return Losses(
            found.view(-1, len(rows), width).sum(-1), torch.full((len(rows),), float(width))
        )

    for width in (8, 9):  # a multiple of the rows, and not
        assert pairs_agree(estimator, partial(losses, [0, 1], width)) == (wrapper is None)
        if estimator.examples is None:
            continue
        try:
            alike = examples_agree(
                estimator, partial(losses, [0, 1], width), partial(losses, [0, 0], width)
            )
        except MixedRows:
            assert (wrapper, width) == (TimeFirst, 9)
        else:
            assert alike == (wrapper is None)
