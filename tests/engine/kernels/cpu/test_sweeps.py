"""The compiled sweeps against their literal twins: equal bits, whatever the shape and dtype."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from support.tensors import assert_same, numbers

from zoft.engine.kernels import reference
from zoft.engine.kernels.cpu import sweeps as cpu
from zoft.engine.kernels.numerics.exact_sum import DirectionSum, Rounding, direction_sum
from zoft.recipe.sections.optimizers.rule import AdamConstants

DTYPES = [torch.float32, torch.bfloat16, torch.float16]
ADDRESS = {"seed": 2**32 - 3, "step": 17, "param": 0xDEADBEEF, "k": 5}


def weights(n: int, dtype: torch.dtype, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    # Magnitudes from float16's subnormal range to well above 1.
    scale = torch.exp2(torch.randint(-30, 6, (n,), generator=generator).float())
    return (torch.randn(n, generator=generator) * scale).to(dtype)


def bits(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.view({2: torch.int16, 4: torch.int32}[tensor.element_size()])


def terms(gaussian: bool, count: int, step: int = 3) -> DirectionSum:
    coefficients = [(-1) ** i * 1e-3 / (1 + i) for i in range(count)]
    return direction_sum(7, gaussian, [(step, k) for k in range(count)], coefficients)


@pytest.mark.parametrize("gaussian", [False, True])
@pytest.mark.parametrize("stored", DTYPES)
@pytest.mark.parametrize("out", DTYPES)
@pytest.mark.parametrize(("n", "offset"), [(1, 0), (255, 8190), (20_000, 2**40 + 77)])
def test_perturb_equals_reference(
    gaussian: bool, stored: torch.dtype, out: torch.dtype, n: int, offset: int
) -> None:
    weight = numbers(n, dtype=stored)
    fast, slow = torch.empty(n, dtype=out), torch.empty(n, dtype=out)
    arguments: dict[str, Any] = {"offset": offset, **ADDRESS, "scale": 3e-3, "gaussian": gaussian}
    cpu.perturb(fast, weight, **arguments)
    reference.perturb(slow, weight, **arguments)
    assert_same(fast, slow)


@pytest.mark.parametrize("gaussian", [False, True])
@settings(max_examples=30, deadline=None)
@given(columns=st.integers(1, 700), rows=st.lists(st.integers(0, 40), max_size=9))
def test_perturb_rows_is_a_slice_of_perturb(gaussian: bool, columns: int, rows: list[int]) -> None:
    weight = numbers(41, columns)
    whole, some = torch.empty_like(weight), torch.empty(len(rows), columns)
    index = torch.tensor(rows, dtype=torch.int64)
    cpu.perturb(whole, weight, **ADDRESS, scale=1e-2, gaussian=gaussian)
    cpu.perturb_rows(some, weight, index, **ADDRESS, scale=1e-2, gaussian=gaussian)
    assert torch.equal(some, whole[index])
    reference.perturb_rows(some, weight, index, **ADDRESS, scale=1e-2, gaussian=gaussian)
    assert torch.equal(some, whole[index])


@settings(max_examples=30, deadline=None)
@given(cuts=st.lists(st.integers(0, 30_000), max_size=4), threads=st.sampled_from([1, 2, 3]))
def test_any_cut_and_any_number_of_threads_give_the_same_direction(
    cuts: list[int], threads: int
) -> None:
    weight = torch.zeros(30_000)
    whole, parts = torch.empty_like(weight), torch.empty_like(weight)
    cpu.perturb(whole, weight, **ADDRESS, scale=1.0, gaussian=False)
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        bounds = [0, *sorted(cuts), 30_000]
        for a, b in itertools.pairwise(bounds):
            part: dict[str, Any] = {**ADDRESS, "scale": 1.0, "gaussian": False, "offset": a}
            cpu.perturb(parts[a:b], weight[a:b], **part)
    finally:
        torch.set_num_threads(before)
    assert torch.equal(whole, parts)
    assert set(whole.tolist()) == {-1.0, 1.0}


@pytest.mark.parametrize("gaussian", [False, True])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("n", [1, 600, 140_001])
def test_updates_equal_reference(gaussian: bool, dtype: torch.dtype, n: int) -> None:
    adam = AdamConstants(beta1=0.9, beta2=0.99, lr=1e-3, correction=0.0297, eps=1e-8)
    common = {"param": 11, "decay": 1 - 1e-4, "rounding": Rounding(7, 3)}
    window = [terms(gaussian, 2, step) for step in (1, 2, 3)]
    results = []
    for kernels in (cpu, reference):
        a, b, c, d = (weights(n, dtype) for _ in range(4))
        m, v = weights(n, torch.float32, 1) * 1e-4, weights(n, torch.float32, 2).abs() * 1e-6
        three = [m.clone(), v.clone(), v.flip(0)]
        kernels.update_dense(a, [terms(gaussian, 5)], **common)
        kernels.update_dense(b, [terms(gaussian, 2)], adam=adam, moments=(m, v), **common)
        kernels.update_dense(c, window, adam=adam, **common)
        kernels.update_dense(d, [terms(gaussian, 3)], adam=adam, moments=three, **common)
        results.append([a, b, c, d, m, v, *three])
    for fast, slow in zip(*results, strict=True):
        assert_same(fast, slow)


@pytest.mark.parametrize("gaussian", [False, True])
def test_the_order_of_the_sum_does_not_matter(gaussian: bool) -> None:
    addresses = [(1 + i // 3, i % 3) for i in range(300)]
    coefficients = [1e-4 * (-1.3) ** (i % 17) for i in range(300)]
    order = torch.randperm(300, generator=torch.Generator().manual_seed(0)).tolist()
    results = []
    for permutation in (range(300), order):
        weight = weights(5_000, torch.float32)
        shuffled = direction_sum(
            7, gaussian, [addresses[i] for i in permutation], [coefficients[i] for i in permutation]
        )
        cpu.update_dense(weight, [shuffled], param=1, decay=1.0, rounding=Rounding(7, 1))
        results.append(weight)
    assert torch.equal(*results)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_stochastic_rounding_is_unbiased_and_leaves_the_representable_alone(
    dtype: torch.dtype,
) -> None:
    n, target = 400_000, 1.0 + 0.3 * torch.finfo(dtype).eps
    weight = torch.ones(n, dtype=dtype)
    still = numbers(n, dtype=dtype)
    still[:3] = torch.tensor([float("nan"), float("inf"), -float("inf")])
    before = still.clone()
    # One sign for every element: a decay factor moves 1.0 by 0.3 of the distance to its neighbour.
    nothing = direction_sum(7, False, [(1, 0)], [0.0])
    cpu.update_dense(weight, [nothing], param=1, decay=target, rounding=Rounding(7, 1))
    cpu.update_dense(still, [nothing], param=1, decay=1.0, rounding=Rounding(7, 1))
    share = (weight.float() > 1).float().mean().item()
    assert share == pytest.approx(0.3, abs=0.005)  # 4 standard deviations are 0.003
    assert torch.equal(still[1:], before[1:])
    assert still[0].isnan()


@pytest.mark.parametrize("row", [-1, 5])
def test_a_row_that_is_not_there_is_refused(row: int) -> None:
    with pytest.raises(IndexError, match="matrix of 5"):
        cpu.perturb_rows(torch.empty(1, 4), torch.zeros(5, 4), torch.tensor([row]), **ADDRESS,
                         scale=1.0, gaussian=False)  # fmt: skip


def test_a_dtype_that_cannot_be_tuned_is_refused() -> None:
    with pytest.raises(TypeError, match="float64"):
        cpu.perturb(torch.empty(3), torch.zeros(3, dtype=torch.float64), **ADDRESS, scale=1.0,
                    gaussian=False)  # fmt: skip
