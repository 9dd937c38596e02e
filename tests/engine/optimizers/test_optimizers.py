"""The update rules against dense twins (tests/reference.py), and what they promise."""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Collection
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file
from support import reference
from support.directions import direction
from support.optimizers import optimizer as optimizer_of
from torch import Tensor, nn

from zoft.engine.estimator import _float32
from zoft.engine.kernels import reference as kernels
from zoft.engine.optimizers.measurement import Measurement
from zoft.engine.optimizers.optimizer import Optimizer
from zoft.engine.optimizers.update import Resident, Tuned, Weights, tuned_weights
from zoft.engine.probe.structures.table import values_of
from zoft.models.storage.safetensors import tensors_in
from zoft.models.trainable import parameter_ids
from zoft.system.philox import PURPOSE_U, PURPOSE_V

SEED = 9
SHAPES = {"a": (40, 30), "b": (7,), "c": (3, 5, 11)}


def weights(
    dtype: torch.dtype = torch.float32, decaying: Collection[str] = frozenset()
) -> Resident:
    generator = torch.Generator().manual_seed(1)
    parameters = {
        name: nn.Parameter(torch.randn(shape, generator=generator).to(dtype), requires_grad=False)
        for name, shape in SHAPES.items()
    }
    return Resident(tuned_weights(parameters, parameter_ids(parameters), set(decaying)))


def radazo(weights_: Weights, moments: str = "full", **changes: Any) -> Optimizer:
    base = {"moments": moments, "fold_momentum": False, "seed": SEED}
    return optimizer_of(weights_, "r-adazo", **{**base, **changes})


def mezo(weights_: Weights, **changes: Any) -> Optimizer:
    return optimizer_of(weights_, "mezo", **{"seed": SEED, **changes})


def measurements(steps: int, directions: int = 1, seed: int = 0) -> list[Measurement]:
    generator = torch.Generator().manual_seed(seed)
    values = torch.randn(steps, directions, generator=generator) * 20
    return [
        Measurement(t, (0.0,), (0.0,), _float32(row))
        for t, row in enumerate(values.tolist(), start=1)
    ]


def materialised(tuned: Tuned, step: int, k: int, rank1: bool, gaussian: bool = False) -> Tensor:
    """z as it is stored, the outer product of two factors for a rank-1 direction of a matrix."""
    shape = tuned.data.shape
    if not rank1 or len(shape) != 2:
        return values_of(
            direction(SEED, step, k, "gaussian" if gaussian else "signs"), tuned.data, tuned.param
        )
    out = torch.empty(sum(shape), dtype=torch.int8)
    table = [[tuned.param, PURPOSE_U, shape[0], 0], [tuned.param, PURPOSE_V, shape[1], shape[0]]]
    kernels.signs(out, torch.tensor(table), seed=SEED, step=step, ks=torch.tensor([k]))
    return reference.outer(out[: shape[0]], out[shape[0] :])


def gradients(
    tuned: Tuned, found: list[Measurement], gaussian: bool = False, rank1: bool = False
) -> list[Tensor]:
    """The estimated gradient of every step for one parameter, dense, in float64."""
    result = []
    for m in found:
        zs = [materialised(tuned, m.step, k, rank1, gaussian) for k in range(len(m.projected_grad))]
        result.append(reference.gradient(list(m.projected_grad), zs))
    return result


def run(optimizer: Optimizer, found: list[Measurement], lr: float = 1e-2) -> list[Tensor]:
    for m in found:
        optimizer.update(m, lr)
    return [w.data.clone() for w in optimizer.weights]


def assert_moves_alike(results: list[Tensor], expected: list[Tensor], start: list[Tensor]) -> None:
    """Equal but for the rounding of coefficients (2**-13), relative to how far the weights moved.

    Where m is next to zero the quotient m / sqrt(v) magnifies it, hence a bound on the worst too.
    """
    for ours, theirs, before in zip(results, expected, start, strict=True):
        moved = (theirs - before).pow(2).mean().sqrt()
        assert (ours - theirs).pow(2).mean().sqrt() < 3e-4 * moved
        assert (ours - theirs).abs().max() < 5e-3 * moved


@pytest.mark.parametrize("gaussian", [False, True])
@pytest.mark.parametrize("directions", [1, 3])
def test_mezo_equals_its_twin(gaussian: bool, directions: int) -> None:
    found = measurements(6, directions)
    optimizer = mezo(weights(decaying={"a"}), gaussian=gaussian, weight_decay=0.1)
    expected = [
        reference.mezo(w.data, gradients(w, found, gaussian), 1e-3, 0.1 if w.decays else 0.0)
        for w in optimizer.weights
    ]
    before = [w.data.clone() for w in optimizer.weights]
    results = run(optimizer, found, 1e-3)
    for ours, theirs, start in zip(results, expected, before, strict=True):
        moved = (theirs - start).abs().max()
        torch.testing.assert_close(ours.double(), theirs, rtol=0, atol=float(moved) * 2e-4)


@pytest.mark.parametrize("gaussian", [False, True])
@pytest.mark.parametrize("moments", ["full", "window"])
@pytest.mark.parametrize("correction", ["v", "none", "adam"])
@pytest.mark.parametrize("directions", [1, 3])
def test_radazo_equals_its_twin(
    gaussian: bool, moments: str, correction: str, directions: int
) -> None:
    found = measurements(12, directions)
    window = 5 if moments == "window" else None
    optimizer = radazo(
        weights(), moments, window=window or 1, bias_correction=correction, gaussian=gaussian
    )
    expected = [
        reference.radazo(
            w.data, gradients(w, found, gaussian), 1e-2, (0.9, 0.99), correction=correction,
            window=window,
        )
        for w in optimizer.weights
    ]  # fmt: skip
    start = [w.data.clone() for w in optimizer.weights]
    assert_moves_alike(run(optimizer, found), expected, start)


def test_scalar_equals_its_twin() -> None:
    found = measurements(30)
    optimizer = radazo(weights(), "scalar", window=300)
    expected = [
        reference.radazo_scalar(w.data, gradients(w, found), 1e-2, (0.9, 0.99))
        for w in optimizer.weights
    ]
    start = [w.data.clone() for w in optimizer.weights]
    assert_moves_alike(run(optimizer, found), expected, start)


# A step of one direction, of 3, and of 3 directions for each of 4 examples.
RANK1_COUNTS = [1, 3, 12]


@pytest.mark.parametrize("directions", RANK1_COUNTS)
def test_mezo_of_rank_one_equals_its_twin(directions: int) -> None:
    found = measurements(6, directions)
    optimizer = mezo(weights(decaying={"a"}), weight_decay=0.1, rank1=True)
    expected = [
        reference.mezo(w.data, gradients(w, found, rank1=True), 1e-3, 0.1 if w.decays else 0.0)
        for w in optimizer.weights
    ]
    before = [w.data.clone() for w in optimizer.weights]
    results = run(optimizer, found, 1e-3)
    for ours, theirs, start in zip(results, expected, before, strict=True):
        moved = (theirs - start).abs().max()
        torch.testing.assert_close(ours.double(), theirs, rtol=0, atol=float(moved) * 3e-4)


@pytest.mark.parametrize("moments", ["full", "window"])
@pytest.mark.parametrize("correction", ["v", "none", "adam"])
@pytest.mark.parametrize("directions", RANK1_COUNTS)
def test_radazo_of_rank_one_equals_its_twin(moments: str, correction: str, directions: int) -> None:
    found = measurements(12, directions)
    window = 5 if moments == "window" else None
    optimizer = radazo(
        weights(), moments, window=window or 1, bias_correction=correction, rank1=True
    )
    expected = [
        reference.radazo(
            w.data, gradients(w, found, rank1=True), 1e-2, (0.9, 0.99), correction=correction,
            window=window,
        )
        for w in optimizer.weights
    ]  # fmt: skip
    start = [w.data.clone() for w in optimizer.weights]
    assert_moves_alike(run(optimizer, found), expected, start)


@pytest.mark.parametrize("folded", [False, True])
@pytest.mark.parametrize("directions", RANK1_COUNTS)
def test_scalar_of_rank_one_equals_its_twin(folded: bool, directions: int) -> None:
    found = measurements(30, directions)
    optimizer = radazo(weights(), "scalar", window=150, fold_momentum=folded, rank1=True)
    squares = [sum(c * c for c in m.projected_grad) / directions**2 for m in found]
    lr, betas = (1e-2 * math.sqrt(1.9 / 0.1), (0.0, 0.99)) if folded else (1e-2, (0.9, 0.99))
    expected = [
        reference.radazo_scalar(w.data, gradients(w, found, rank1=True), lr, betas, squares)
        for w in optimizer.weights
    ]
    start = [w.data.clone() for w in optimizer.weights]
    assert_moves_alike(run(optimizer, found), expected, start)


def test_what_a_rank_one_sum_squares_to_follows_from_the_scalars() -> None:
    """mean(g**2) over a matrix is sum c_k**2 / K**2 up to O(1 / sqrt(d)), as scalar moments assume."""
    [w] = tuned_weights(
        {"w": nn.Parameter(torch.zeros(300, 500), requires_grad=False)}, {"w": 1}, set()
    )
    [found] = measurements(1, directions=64)
    [g] = gradients(w, [found], rank1=True)
    expected = sum(c * c for c in found.projected_grad) / 64**2
    assert float((g**2).mean()) == pytest.approx(expected, rel=0.02)


def test_a_rank_one_update_is_no_dense_one() -> None:
    found = measurements(1)
    dense, rank1 = (run(mezo(weights(), rank1=is_rank1), found) for is_rank1 in (False, True))
    moved = [(after - w.data).double() for after, w in zip(rank1, weights(), strict=True)]
    assert torch.linalg.matrix_rank(moved[0], rtol=1e-3) == 1
    assert not torch.equal(dense[0], rank1[0])
    assert all(
        itertools.starmap(torch.equal, zip(dense[1:], rank1[1:], strict=True))
    )  # no matrices


@pytest.mark.parametrize("rank1", [False, True])
def test_a_window_as_long_as_the_run_is_full_bit_for_bit(rank1: bool) -> None:
    found = measurements(20, directions=2)
    full = run(radazo(weights(), rank1=rank1), found)
    window = run(radazo(weights(), "window", window=20, rank1=rank1), found)
    short = run(radazo(weights(), "window", window=19, rank1=rank1), found)
    assert all(itertools.starmap(torch.equal, zip(full, window, strict=True)))
    assert not torch.equal(full[0], short[0])


@pytest.mark.parametrize("moments", ["full", "window", "scalar"])
@pytest.mark.parametrize("c", [1e-3, 17.0, 4e4])
def test_the_first_update_has_the_length_of_the_rate(moments: str, c: float) -> None:
    optimizer = radazo(weights(), moments)
    before = [w.data.clone() for w in optimizer.weights]
    optimizer.update(Measurement(1, (0.0,), (0.0,), _float32([c])), 1e-2)
    moved = torch.cat(
        [(w.data - b).flatten() for w, b in zip(optimizer.weights, before, strict=True)]
    )
    assert moved.pow(2).mean().sqrt().item() == pytest.approx(1e-2, rel=0.05)


def test_without_correction_the_first_update_is_ten_times_as_long() -> None:
    optimizer = radazo(weights(), bias_correction="none")
    [first, *_] = optimizer.weights
    before = first.data.clone()
    optimizer.update(measurements(1)[0], 1e-2)
    moved = (first.data - before).pow(2).mean().sqrt().item()
    assert moved == pytest.approx(0.1, rel=0.05)


def quadratic(optimizer: Optimizer, h: Tensor, lr: float, steps: int) -> list[float]:
    """Loss of sum h theta**2 / 2 over the run, with exact projected gradients."""
    [w] = optimizer.weights
    losses = []
    for t in range(1, steps + 1):
        z = values_of(direction(SEED, t, 0), w.data, w.param)
        c = float((h * w.data * z).sum())
        optimizer.update(Measurement(t, (0.0,), (0.0,), _float32([c])), lr)
        losses.append(float((h * w.data**2).sum() / 2))
    return losses


def one_weight(d: int = 2000) -> Resident:
    theta = nn.Parameter(torch.randn(d, generator=torch.Generator().manual_seed(0)), False)
    return Resident(tuned_weights({"theta": theta}, {"theta": 1}, set()))


@pytest.mark.parametrize(("lr", "bound"), [(1e-3, 0.004), (3e-3, 0.005), (1e-2, 0.012)])
def test_folded_and_unfolded_momentum_agree(lr: float, bound: float) -> None:
    h = torch.logspace(0, -2, 2000)
    folded = radazo(one_weight(), "scalar", fold_momentum=True)
    plain = radazo(one_weight(), "scalar", window=200)
    assert folded.state_dict()["past"] == []
    a, b = quadratic(folded, h, lr, 200)[-1], quadratic(plain, h, lr, 200)[-1]
    assert a == pytest.approx(b, rel=bound)


@pytest.mark.parametrize("moments", ["mezo", "full", "window", "scalar", "folded"])
def test_a_quadratic_falls(moments: str) -> None:
    h = torch.logspace(0, -1, 300)
    optimizer: Optimizer
    if moments == "mezo":
        optimizer, lr = mezo(one_weight(300)), 2e-3
    else:
        kind = "scalar" if moments == "folded" else moments
        folds = moments == "folded"
        optimizer, lr = radazo(one_weight(300), kind, fold_momentum=folds, window=22), 3e-3
    losses = quadratic(optimizer, h, lr, 400)
    assert losses[-1] < 0.7 * losses[0]
    assert losses[-1] < losses[200] < losses[50]


@pytest.mark.parametrize("moments", ["mezo", "full", "window", "scalar", "folded"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("rank1", [False, True])
def test_a_saved_state_goes_on_bit_for_bit(
    moments: str, dtype: torch.dtype, rank1: bool, tmp_path: Path
) -> None:
    def make() -> Optimizer:
        if moments == "mezo":
            return mezo(weights(dtype), weight_decay=0.1, rank1=rank1)
        kind = "scalar" if moments == "folded" else moments
        folds = moments == "folded"
        return radazo(weights(dtype), kind, fold_momentum=folds, window=4, rank1=rank1)

    found = measurements(9, directions=2)
    whole, first, second = make(), make(), make()
    expected = run(whole, found)
    for w, start in zip(second.weights, run(first, found[:6]), strict=True):
        w.data.copy_(start)
    second.load_state_dict(json.loads(json.dumps(first.state_dict())))
    [kept] = first.weights.visits()
    save_file(dict(kept), tmp_path / "kept")
    second.weights.load(tensors_in(tmp_path / "kept"))
    assert all(itertools.starmap(torch.equal, zip(expected, run(second, found[6:]), strict=True)))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_small_updates_of_low_precision_weights_arrive_on_average(dtype: torch.dtype) -> None:
    ones = nn.Parameter(torch.ones(200_000, dtype=dtype), requires_grad=False)
    optimizer = mezo(
        Resident(tuned_weights({"w": ones}, {"w": 3}, set())),
        seed=SEED,
        gaussian=False,
        weight_decay=0.0,
    )
    z = values_of(direction(SEED, 1, 0), ones.data, 3)
    optimizer.update(Measurement(1, (0.0,), (0.0,), (1.0,)), 1e-5)  # ulp of bfloat16: 8e-3
    moved = ((ones.data.float() - 1) * -z).mean().item()
    assert moved == pytest.approx(1e-5, rel=0.35)  # to nearest it would be 0


@settings(max_examples=25, deadline=None)
@given(
    order=st.permutations(sorted(SHAPES)), cs=st.lists(st.floats(-1e3, 1e3), min_size=1, max_size=4)
)
def test_the_result_does_not_depend_on_the_order_of_the_parameters(
    order: list[str], cs: list[float]
) -> None:
    found = [Measurement(1, (0.0,), (0.0,), _float32(cs))]
    usual = radazo(weights(), "scalar")
    other = radazo(Resident(sorted(weights(), key=lambda w: order.index(w.name))), "scalar")
    run(usual, found)
    run(other, found)
    by_name = {w.name: w.data for w in other.weights}
    assert all(torch.equal(w.data, by_name[w.name]) for w in usual.weights)


def test_too_many_directions_for_an_exact_sum_are_refused() -> None:
    optimizer = mezo(weights())
    many = Measurement(1, (0.0,), (0.0,), (1.0,) * 2049)
    with pytest.raises(ValueError, match="2048"):
        optimizer.update(many, 1e-3)


def test_coefficients_keep_thirteen_bits() -> None:
    from zoft.engine.kernels.numerics.exact_sum import direction_sum

    for largest in (1e-30, 3.7e-4, 1.0, 8191.9, 1e20):
        terms = direction_sum(1, False, [(1, 0), (1, 1)], [largest, -largest / 3])
        assert abs(terms.n).max() <= 2**13
        assert math.log2(terms.grid) == int(math.log2(terms.grid))
        assert terms.n[0] * terms.grid == pytest.approx(largest, rel=2**-12)
        assert terms.n[1] * terms.grid == pytest.approx(-largest / 3, rel=2**-11)
