"""The compiled loops for rank-1 directions and for both signs against their literal twins."""

from __future__ import annotations

import itertools
from types import ModuleType
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from support.tensors import assert_same, numbers
from torch import Tensor

from zoft.engine.kernels import reference
from zoft.engine.kernels.cpu import sweeps as cpu
from zoft.engine.kernels.numerics.exact_sum import DirectionSum, Rounding, direction_sum
from zoft.recipe.sections.optimizers.rule import AdamConstants
from zoft.system.philox import PURPOSE_U, PURPOSE_V

DTYPES = [torch.float32, torch.bfloat16, torch.float16]
LOW = DTYPES[1:]
ADDRESS = {"seed": 2**32 - 3, "step": 17, "param": 0xDEADBEEF}
# One element, one row, one column; primes and neighbours of a row of 256 bits.
SHAPES = [(1, 1), (1, 283), (300, 1), (37, 283), (300, 257)]


def signs_of(*shape: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return (torch.randint(0, 2, shape, generator=generator) * 2 - 1).to(torch.int8)


# -- drawing ----------------------------------------------------------------------------------------


def drawn(kernels: ModuleType, table: list[list[int]], ks: list[int]) -> Tensor:
    size = max((offset + len(ks) * length for *_, length, offset in table), default=0)
    out = torch.full((size,), 99, dtype=torch.int8)
    address = {"seed": ADDRESS["seed"], "step": ADDRESS["step"]}
    kernels.signs(out, torch.tensor(table).view(-1, 4), **address, ks=torch.tensor(ks))
    return out


@pytest.mark.parametrize("length", [1, 255, 256, 257, 8191, 8192, 8193, 20_000])
def test_signs_equal_reference(length: int) -> None:
    ks = [0, 5, 2**24 - 1]
    table = [[7, PURPOSE_U, length, 0], [2**32 - 1, PURPOSE_V, 37, 3 * length]]
    fast = drawn(cpu, table, ks)
    assert_same(fast, drawn(reference, table, ks))
    assert set(fast.tolist()) <= {-1, 1}


@given(
    lengths=st.lists(st.integers(1, 600), min_size=1, max_size=4),
    ks=st.lists(st.integers(0, 2**24 - 1), min_size=1, max_size=4),
)
def test_a_sign_depends_on_its_own_address_alone(lengths: list[int], ks: list[int]) -> None:
    """Not on which factors and directions are drawn beside it, nor on the vector's length."""
    starts = itertools.accumulate([len(ks) * n for n in lengths], initial=0)
    table = [[i, PURPOSE_U + i % 2, n, at] for i, (n, at) in enumerate(zip(lengths, starts))]  # noqa: B905
    together = drawn(cpu, table, ks)
    for param, purpose, length, at in table:
        for i, k in enumerate(ks):
            alone = drawn(cpu, [[param, purpose, 700, 0]], [k])
            assert torch.equal(together[at + i * length : at + (i + 1) * length], alone[:length])


def test_factors_of_other_addresses_are_other_signs() -> None:
    def one(param: int, purpose: int, k: int) -> bytes:
        return bytes(drawn(cpu, [[param, purpose, 128, 0]], [k]).numpy())

    found = [one(p, q, k) for p in (1, 2) for q in (PURPOSE_U, PURPOSE_V) for k in (0, 1, 2)]
    assert len(set(found)) == len(found)
    assert abs(drawn(cpu, [[1, PURPOSE_U, 100_000, 0]], [0]).float().mean()) < 0.013  # 4 sigma


# -- probing ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("gaussian", [False, True])
@pytest.mark.parametrize("stored", DTYPES)
@pytest.mark.parametrize("out", DTYPES)
@pytest.mark.parametrize(("n", "offset"), [(1, 0), (255, 8190), (20_000, 2**40 + 77)])
def test_a_pair_equals_two_perturbations_and_reference(
    gaussian: bool, stored: torch.dtype, out: torch.dtype, n: int, offset: int
) -> None:
    weight = numbers(n, dtype=stored)
    z: dict[str, Any] = {"offset": offset, **ADDRESS, "k": 5, "gaussian": gaussian}
    pairs = []
    for kernels in (cpu, reference):
        pairs.append([torch.empty(n, dtype=out) for _ in range(2)])
        kernels.perturb_pair(*pairs[-1], weight, **z, scale=3e-3)
    for sign, fast, slow in zip((1, -1), *pairs, strict=True):
        single = torch.empty(n, dtype=out)
        cpu.perturb(single, weight, **z, scale=sign * 3e-3)
        assert_same(fast, slow)
        assert_same(fast, single)


@pytest.mark.parametrize("stored", DTYPES)
@pytest.mark.parametrize("columns", [1, 256, 283, 8193])
def test_each_equals_reference_and_single_perturbations(stored: torch.dtype, columns: int) -> None:
    weight = numbers(columns, dtype=stored)
    ks = torch.tensor([4, 4, 0, 2**24 - 1, 4])  # repeated, in any order
    scales = torch.tensor([1e-3, -1e-3, 0.5, 0.0, 7.0])
    results = []
    for kernels in (cpu, reference):
        results.append(torch.empty(5, columns))
        kernels.perturb_each(results[-1], weight, **ADDRESS, ks=ks, scales=scales)
    assert_same(*results)
    for row, k, scale in zip(results[0], ks.tolist(), scales.tolist(), strict=True):
        single = torch.empty(columns)
        cpu.perturb(single, weight, **ADDRESS, k=k, scale=scale, gaussian=False)
        assert_same(row, single)


def runs(count: int, directions: int, seed: int) -> tuple[Tensor, Tensor]:
    """Direction and scale of `count` runs."""
    generator = torch.Generator().manual_seed(seed)
    which = torch.randint(0, directions, (count,), generator=generator)
    return which, torch.randn(count, generator=generator)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("columns", [1, 257, 1000])
@pytest.mark.parametrize(("vectors", "runs_", "twins"), [(1, 1, 1), (12, 4, 3), (30, 30, 2)])
def test_project_is_the_exact_dot_product(
    dtype: torch.dtype, columns: int, vectors: int, runs_: int, twins: int
) -> None:
    x = torch.randn(vectors, columns, generator=torch.Generator().manual_seed(1)).to(dtype)
    v, (which, scales) = signs_of(twins, 5, columns), runs(runs_, 5, 2)
    row = torch.arange(vectors) // (vectors // runs_)
    exact = (x.double() * v[:, which[row]]).sum(-1) * scales[row]
    size = (x.double().abs().sum(-1) * scales[row].abs()).expand_as(exact)
    for kernels in (cpu, reference):
        for padded in (None, torch.full((vectors, columns + 16), 9.0, dtype=dtype)):
            s = torch.full((twins, vectors), torch.nan)
            kernels.project(s, x, v, which, scales, padded)
            # Each of `columns` float32 additions errs by 2**-24 of the partial sum at most.
            assert ((s - exact).abs() <= 2.0**-23 * columns * size).all()
            assert ((s - exact).abs() <= 1e-6 * size + 1e-12).all()
            if padded is not None:
                assert_same(padded[:, :columns], x)
                assert (padded[:, columns:] == 9.0).all()


@pytest.mark.parametrize("dtype", LOW)
@pytest.mark.parametrize(("vectors", "runs_"), [(1, 1), (12, 4), (300, 300)])
@pytest.mark.parametrize("columns", [1, 37, 257])
def test_spread_equals_reference(
    dtype: torch.dtype, vectors: int, runs_: int, columns: int
) -> None:
    s, (which, _) = numbers(vectors), runs(runs_, 16, 3)
    results = []
    for kernels in (cpu, reference):
        padded = numbers(vectors, columns + 16, dtype=dtype, seed=4)
        before = padded.clone()
        kernels.spread(padded, s, which, columns)
        assert_same(padded[:, :columns], before[:, :columns])
        results.append(padded)
    assert_same(*results)
    assert (results[0][:, columns:] != 0).sum(-1).max() <= 1


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("stored", DTYPES)
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("directions", [1, 16])
def test_widen_equals_reference(
    dtype: torch.dtype, stored: torch.dtype, shape: tuple[int, ...], directions: int
) -> None:
    weight, u = numbers(*shape, dtype=stored), signs_of(directions, shape[0])
    results = []
    for kernels in (cpu, reference):
        results.append(torch.full((shape[0], shape[1] + 16), torch.nan, dtype=dtype))
        kernels.widen(results[-1], weight, u)
    assert_same(*results)
    assert_same(results[0][:, : shape[1]], weight.to(dtype))


@pytest.mark.parametrize("biases", ["none", "one", "each"])
@pytest.mark.parametrize("columns", [1, 37, 283])
@pytest.mark.parametrize(("vectors", "runs_"), [(1, 1), (12, 4), (30, 30)])
def test_prefill_equals_reference(biases: str, columns: int, vectors: int, runs_: int) -> None:
    s, u, (which, _) = numbers(vectors), signs_of(5, columns), runs(runs_, 5, 3)
    bias = {"none": None, "one": numbers(1, columns), "each": numbers(runs_, columns)}[biases]
    results = []
    for kernels in (cpu, reference):
        results.append(torch.full((vectors, columns), torch.nan))
        kernels.prefill(results[-1], s, u, which, bias)
    assert_same(*results)


@settings(max_examples=30, deadline=None)
@given(
    inputs=st.integers(1, 40), outputs=st.integers(1, 40), tokens=st.integers(1, 4),
    rows=st.integers(1, 20), directions=st.integers(1, 16), seed=st.integers(0, 99),
)  # fmt: skip
def test_what_is_added_to_a_product_is_the_outer_product(
    inputs: int, outputs: int, tokens: int, rows: int, directions: int, seed: int
) -> None:
    """x W^T + scale (x v) u^T, the float32 way and the widened one, is x (W + scale u v^T)^T."""
    generator = torch.Generator().manual_seed(seed)
    x, weight = (torch.randn(n, inputs, generator=generator) for n in (rows * tokens, outputs))
    u, v = signs_of(directions, outputs), signs_of(1, directions, inputs)
    which, scales = runs(rows, directions, seed)
    exact = torch.cat([
        part.double() @ (weight.double() + scale * torch.outer(u[k].double(), v[0, k].double())).t()
        for part, k, scale in zip(x.chunk(rows), which.tolist(), scales.tolist(), strict=True)
    ])  # fmt: skip
    s = torch.empty(1, len(x))
    padded, wide = torch.empty(len(x), inputs + 16), torch.empty(outputs, inputs + 16)
    cpu.project(s, x, v, which, scales, padded)
    y = torch.empty(len(x), outputs)
    cpu.prefill(y, s[0], u, which)
    torch.testing.assert_close((y + x @ weight.t()).double(), exact, rtol=0, atol=2e-4)
    cpu.spread(padded, s[0], which, inputs)
    cpu.widen(wide, weight, u)
    torch.testing.assert_close((padded @ wide.t()).double(), exact, rtol=0, atol=2e-4)


# -- updating ---------------------------------------------------------------------------------------


def terms(count: int, step: int = 3) -> DirectionSum:
    coefficients = [(-1) ** i * 1e-3 / (1 + i) for i in range(count)]
    return direction_sum(7, False, [(step, k) for k in range(count)], coefficients)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [*SHAPES, (3, 37, 283), (5, 1, 300), (2, 300, 257)])
def test_updates_equal_reference(dtype: torch.dtype, shape: tuple[int, ...]) -> None:
    adam = AdamConstants(beta1=0.9, beta2=0.99, lr=1e-3, correction=0.0297, eps=1e-8)
    common = {"param": 11, "decay": 1 - 1e-4, "rounding": Rounding(7, 3)}
    window = [terms(count, step) for step, count in ((1, 2), (2, 5), (3, 1))]
    results = []
    for kernels in (cpu, reference):
        a, b, c, d = (numbers(*shape, dtype=dtype) for _ in range(4))
        m, v = numbers(*shape, seed=1) * 1e-4, numbers(*shape, seed=2).abs() * 1e-6
        three = [m.clone(), v.clone(), v.flip(-1)]
        kernels.update_rank1(a, [terms(7)], **common)
        kernels.update_rank1(b, [terms(6)], adam=adam, moments=(m, v), **common)
        kernels.update_rank1(c, window, adam=adam, **common)
        kernels.update_rank1(d, [terms(4)], adam=adam, moments=three, **common)
        results.append([a, b, c, d, m, v, *three])
    for fast, slow in zip(*results, strict=True):
        assert_same(fast, slow)
    assert not torch.equal(results[0][0], numbers(*shape, dtype=dtype))


@pytest.mark.parametrize("count", [1, 3, 4, 5, 2048])
def test_a_sum_is_that_of_the_outer_products(count: int) -> None:
    made = terms(count)
    weight = torch.zeros(19, 283)
    cpu.update_rank1(weight, [made], param=11, decay=1.0, rounding=Rounding(7, 1))
    exact = torch.zeros(19, 283, dtype=torch.float64)
    for k, n in enumerate(made.n.tolist()):
        table = [[11, PURPOSE_U, 19, 0], [11, PURPOSE_V, 283, 19]]
        out = torch.empty(302, dtype=torch.int8)
        reference.signs(out, torch.tensor(table), seed=7, step=3, ks=torch.tensor([k]))
        u, v = out[:19].double(), out[19:].double()
        exact += n * made.grid * torch.outer(u, v)
    assert torch.equal(weight.double(), exact)  # not a bit is lost in 2048 terms


@settings(max_examples=20, deadline=None)
@given(
    experts=st.integers(1, 6), rows=st.integers(1, 40), columns=st.integers(1, 300),
    count=st.integers(1, 20), threads=st.sampled_from([1, 3]), dtype=st.sampled_from(DTYPES),
)  # fmt: skip
def test_every_expert_moves_along_its_own_pairs_of_vectors(
    experts: int, rows: int, columns: int, count: int, threads: int, dtype: torch.dtype
) -> None:
    """As a matrix of all rows does whose columns are read where its own expert has them."""
    sums, before = terms(count), torch.get_num_threads()
    common: dict[str, Any] = {"param": 11, "decay": 0.99, "rounding": Rounding(7, 3)}
    weight, twin = (numbers(experts, rows, columns, dtype=dtype) for _ in range(2))
    table = [[11, PURPOSE_U, experts * rows, 0], [11, PURPOSE_V, experts * columns, experts * rows]]
    try:
        torch.set_num_threads(threads)
        cpu.update_rank1(weight, [sums], **common)
    finally:
        torch.set_num_threads(before)
    g = torch.zeros(experts, rows, columns, dtype=torch.float64)
    for k, n in enumerate(sums.n.tolist()):
        out = torch.empty(experts * (rows + columns), dtype=torch.int8)
        reference.signs(out, torch.tensor(table), seed=7, step=3, ks=torch.tensor([k]))
        u, v = (x.view(experts, -1).double() for x in (out[: table[0][2]], out[table[0][2] :]))
        g += n * torch.einsum("er,ec->erc", u, v)
    reference.add_scaled(twin, g.float() * sums.grid, 1.0, **common)
    assert_same(weight, twin)


@settings(max_examples=20, deadline=None)
@given(
    count=st.integers(1, 300), seed=st.integers(0, 99), rows=st.integers(1, 40),
    columns=st.integers(1, 300), threads=st.sampled_from([1, 2, 3]),
)  # fmt: skip
def test_the_order_of_the_sum_does_not_matter(
    count: int, seed: int, rows: int, columns: int, threads: int
) -> None:
    generator = torch.Generator().manual_seed(seed)
    addresses = [(1 + i // 3, i % 3) for i in range(count)]
    coefficients = (torch.randn(count, generator=generator) * 1e-3).tolist()
    order = torch.randperm(count, generator=generator).tolist()
    before, results = torch.get_num_threads(), []
    try:
        for permutation, used in ((list(range(count)), 1), (order, threads)):
            torch.set_num_threads(used)
            weight = numbers(rows, columns)
            shuffled = direction_sum(
                7, False, [addresses[i] for i in permutation],
                [coefficients[i] for i in permutation],
            )  # fmt: skip
            cpu.update_rank1(weight, [shuffled], param=1, decay=1.0, rounding=Rounding(7, 1))
            results.append(weight)
    finally:
        torch.set_num_threads(before)
    assert_same(*results)


def test_threads_cut_a_large_matrix_anywhere(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cpu, "MIN_PER_THREAD", 1)
    results, before = [], torch.get_num_threads()
    try:
        for threads in (1, 3):
            torch.set_num_threads(threads)
            results.append(numbers(331, 257, dtype=torch.bfloat16))
            common: dict[str, Any] = {"param": 1, "decay": 0.99, "rounding": Rounding(7, 1)}
            cpu.update_rank1(results[-1], [terms(5)], **common)
    finally:
        torch.set_num_threads(before)
    assert_same(*results)
