"""Run by `test_sweeps.py` with TRITON_INTERPRET=1: equal bits, whatever the shape and the type."""

from __future__ import annotations

import inspect
import itertools
from types import ModuleType
from typing import Any

import pytest
import torch
from support.tensors import bits, numbers
from torch import Tensor

from zoft.engine.kernels import reference
from zoft.engine.kernels.numerics.exact_sum import DirectionSum, Rounding, direction_sum
from zoft.engine.kernels.triton import sweeps as triton
from zoft.engine.optimizers import optimizer
from zoft.engine.optimizers.measurement import Measurement
from zoft.engine.optimizers.update import Resident, Tuned
from zoft.engine.probe.structures import dense, rank1
from zoft.recipe.sections.optimizers.mezo import MeZO
from zoft.recipe.sections.optimizers.radazo import RAdaZO
from zoft.recipe.sections.optimizers.rule import AdamConstants, OptimizerSection
from zoft.system.philox import PURPOSE_U, PURPOSE_V

# The interpreter computes with numpy, which warns where IEEE says inf.
pytestmark = pytest.mark.filterwarnings("ignore::RuntimeWarning")

DTYPES = [torch.float32, torch.bfloat16, torch.float16]
ADDRESS = {"seed": 2**32 - 3, "step": 17, "param": 0xDEADBEEF, "k": 5}
COMMON = {"param": 0xDEADBEEF, "decay": 1 - 1e-4, "rounding": Rounding(2**32 - 7, 3)}
ADAM = AdamConstants(beta1=0.9, beta2=0.99, lr=1e-3, correction=0.0297, eps=1e-8)


def weights(shape: int | tuple[int, ...], dtype: torch.dtype, seed: int = 0) -> Tensor:
    """From float16's subnormal range to well above 1, and what is no number at all."""
    x = numbers(*((shape,) if isinstance(shape, int) else shape), seed=seed)
    special = torch.tensor([0.0, -0.0, float("inf"), -float("inf"), float("nan"), 65519.0, 65520.0,
                            -3.3e38, 1e-40, -6e-8, 3e-8, 6.1e-5])  # fmt: skip
    if x.numel() > 60:
        x.view(-1)[17 : 17 + len(special)] = special
    return x.to(dtype)


def equal(a: Tensor, b: Tensor) -> bool:
    # A NaN's payload is the adder's own; only that it is one is promised.
    nan = a.isnan() & b.isnan()
    return bool(((bits(a) == bits(b)) | nan).all())


def terms(count: int, *, gaussian: bool = False, step: int = 3) -> DirectionSum:
    coefficients = [(-1) ** i * 1e-3 / (1 + i) for i in range(count)]
    addresses = [(step, 9 * k) for k in range(count)]
    return direction_sum(2**32 - 7, gaussian, addresses, coefficients)


def test_the_signatures_are_the_references() -> None:
    names = "perturb perturb_pair perturb_rows perturb_each signs project spread widen prefill"
    for name in [*names.split(), "update_dense", "update_rank1"]:
        assert inspect.signature(getattr(triton, name)) == inspect.signature(
            getattr(reference, name)
        )


@pytest.mark.parametrize(
    ("stored", "gaussian", "n", "offset"),
    [
        *itertools.product(DTYPES, [False, True], [1, 255], [8190]),
        *itertools.product(DTYPES, [False, True], [257], [2**40 + 77]),
        *itertools.product(DTYPES, [False, True], [997], [2**31 + 8192 * 3]),
        (torch.float32, False, 8191, 1),
        (torch.bfloat16, False, 8193, 0),
    ],
)
def test_perturb(stored: torch.dtype, gaussian: bool, n: int, offset: int) -> None:
    weight = weights(n, stored)
    arguments: dict[str, Any] = {"offset": offset, **ADDRESS, "scale": 3e-3, "gaussian": gaussian}
    # One type into all only where it is cheap.
    for dtype in DTYPES if n == 255 else [stored]:
        fast, slow, plus, minus = (torch.empty(n, dtype=dtype) for _ in range(4))
        triton.perturb(fast, weight, **arguments)
        reference.perturb(slow, weight, **arguments)
        assert equal(fast, slow)
        triton.perturb_pair(plus, minus, weight, **arguments)
        assert equal(plus, slow)
        reference.perturb(slow, weight, **{**arguments, "scale": -3e-3})
        assert equal(minus, slow)


@pytest.mark.parametrize("gaussian", [False, True])
@pytest.mark.parametrize("columns", [1, 255, 512, 1031])
def test_perturb_rows(gaussian: bool, columns: int) -> None:
    weight = weights((41, columns), torch.bfloat16)
    rows = torch.tensor([40, 0, 7, 7, 31])
    fast, slow = torch.empty(5, columns), torch.empty(5, columns)
    for kernels, out in ((triton, fast), (reference, slow)):
        kernels.perturb_rows(out, weight, rows, **ADDRESS, scale=1e-2, gaussian=gaussian)
    assert equal(fast, slow)
    triton.perturb_rows(fast[:0], weight, rows[:0], **ADDRESS, scale=1e-2, gaussian=gaussian)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("columns", [1, 577])
def test_perturb_each(dtype: torch.dtype, columns: int) -> None:
    weight = weights(columns, dtype)
    ks, scales = torch.tensor([0, 5, 2**24 - 1]), torch.tensor([1e-3, -1e-3, 0.3])
    arguments: dict[str, Any] = {"seed": 1, "step": 2, "param": 3, "ks": ks, "scales": scales}
    fast, slow = torch.empty(3, columns, dtype=dtype), torch.empty(3, columns, dtype=dtype)
    triton.perturb_each(fast, weight, **arguments)
    reference.perturb_each(slow, weight, **arguments)
    assert equal(fast, slow)


def test_signs() -> None:
    ks = torch.tensor([0, 5, 2**24 - 1])
    table, offset = [], 0
    for param, purpose, length in (
        (5, PURPOSE_U, 1),
        (5, PURPOSE_V, 8193),
        (2**32 - 1, PURPOSE_U, 255),
    ):
        table.append([param, purpose, length, offset])
        offset += 3 * length
    fast, slow = (torch.zeros(offset, dtype=torch.int8) for _ in range(2))
    for kernels, out in ((triton, fast), (reference, slow)):
        kernels.signs(out, torch.tensor(table), seed=2**32 - 3, step=17, ks=ks)
    assert equal(fast, slow)
    assert set(fast.tolist()) == {-1, 1}


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("runs", "count", "columns"), [(1, 1, 1), (3, 2, 577), (2, 3, 1024)])
def test_what_surrounds_a_product(dtype: torch.dtype, runs: int, count: int, columns: int) -> None:
    generator = torch.Generator().manual_seed(0)
    n, vectors, outputs = runs + 1, runs * count, 515

    def pm1(*shape: int) -> Tensor:
        return (torch.randint(0, 2, shape, generator=generator) * 2 - 1).to(torch.int8)

    x = torch.randn(vectors, columns, generator=generator).to(dtype)
    which = torch.arange(runs) + 1
    v, u, scales = pm1(3, n, columns), pm1(n, outputs), torch.linspace(-1, 1, runs) + 0.1
    weight = weights((outputs, columns), dtype)
    results: list[list[Tensor]] = []
    for kernels in (triton, reference):
        s, padded = torch.empty(3, vectors), torch.full((vectors, columns + n), 7.0).to(dtype)
        kernels.project(s, x, v, which, scales, padded)
        alone = torch.empty_like(s)
        kernels.project(alone, x, v, which, scales)
        assert torch.equal(s, alone)
        if results:
            torch.testing.assert_close(results[0][0], s, rtol=2e-6, atol=2e-6 * columns**0.5)
            s = results[0][0]  # from here on equal inputs
        kernels.spread(padded, s[0], which, columns)
        wide = torch.full((outputs, columns + n + 2), 7.0).to(dtype)
        kernels.widen(wide, weight, u)
        y, shared, own = (torch.empty(vectors, outputs) for _ in range(3))
        kernels.prefill(y, s[1], u, which)
        kernels.prefill(shared, s[1], u, which, torch.linspace(0, 1, outputs)[None])
        kernels.prefill(own, s[1], u, which, torch.arange(runs * outputs).view(runs, -1) / 7)
        results.append([s, padded, wide, y, shared, own])
    assert all(equal(fast, slow) for fast, slow in zip(*results, strict=True))


@pytest.mark.parametrize(
    ("dtype", "kind", "shape"),
    [
        *itertools.product(DTYPES, ["signs"], [(1,), (3, 257)]),
        *itertools.product(DTYPES, ["gaussian"], [(255,), (3, 257)]),
        *itertools.product(DTYPES, ["rank1"], [(9, 512), (1, 255)]),
        (torch.float32, "rank1", (5, 577)),
        (torch.float16, "rank1", (3, 513)),
        (torch.float32, "rank1", (3, 5, 512)),  # matrices, of which none ends with a program
        (torch.bfloat16, "rank1", (2, 9, 77)),
        (torch.float32, "signs", (4099,)),
        (torch.bfloat16, "signs", (8193,)),
    ],
)
def test_updates(dtype: torch.dtype, kind: str, shape: tuple[int, ...]) -> None:
    which = {"gaussian": kind == "gaussian"}
    window = [terms(2, **which, step=step) for step in (1, 2)]
    results = []
    for kernels in (triton, reference):
        a, b, c, d = (weights(shape, dtype, i) for i in range(4))
        m, v = (
            weights(shape, torch.float32, 1) * 1e-4,
            weights(shape, torch.float32, 2).abs() * 1e-6,
        )
        three = [m.clone(), v.clone(), v.flip(-1)]
        update = kernels.update_rank1 if kind == "rank1" else kernels.update_dense
        update(a, [terms(3, **which)], **COMMON)
        update(b, [terms(2, **which)], adam=ADAM, moments=(m, v), **COMMON)
        update(c, window, adam=ADAM, **COMMON)
        update(d, [terms(2, **which)], adam=ADAM, moments=three, **COMMON)
        results.append([a, b, c, d, m, v, *three])
    for fast, slow in zip(*results, strict=True):
        assert equal(fast, slow)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_no_update_leaves_what_is_representable_alone(dtype: torch.dtype) -> None:
    weight = weights(600, dtype)
    before = weight.clone()
    nothing = direction_sum(7, False, [(1, 0)], [0.0])
    triton.update_dense(weight, [nothing], param=1, decay=1.0, rounding=Rounding(7, 1))
    zero = before == 0  # 0 + -0 is 0
    assert equal(weight[~zero], before[~zero])
    triton.update_dense(weight[:0], [nothing], param=1, decay=1.0, rounding=Rounding(7, 1))


def test_a_direction_number_beyond_its_field_is_refused() -> None:
    with pytest.raises(ValueError, match="2\\*\\*24"):
        triton.perturb(torch.empty(3), torch.zeros(3), **{**ADDRESS, "k": 1 << 24}, scale=1.0,
                       gaussian=False)  # fmt: skip


def replayed(kernels: ModuleType, rule: str, monkeypatch: pytest.MonkeyPatch) -> list[Tensor]:
    """A matrix and a vector after four steps of a journal, one of them skipped."""
    for structure in (dense, rank1):
        monkeypatch.setattr(structure, "kernels_for", lambda _: kernels)
    dtype = torch.bfloat16 if rule == "full" else torch.float32
    start = {"matrix": weights((7, 45), dtype)[:, 5:].contiguous(), "vector": weights(50, dtype)}
    tuned = [
        Tuned(x, torch.nn.Parameter(t), 11 + i, i == 0) for i, (x, t) in enumerate(start.items())
    ]
    section: OptimizerSection
    if rule == "mezo":
        keys: dict[str, Any] = {"distribution": "gaussian", "structure": "dense"}
        section = MeZO.model_validate({"weight_decay": 0.1, **keys})
    else:
        keys = {"structure": "rank1", "moments": rule, "window": 2}
        section = RAdaZO.model_validate({"weight_decay": 0.1, **keys})
    made = optimizer.optimizer_for(section, 2**32 - 3, Resident(tuned))
    for step in range(1, 5):
        c = (3.5 / step, float("nan") if step == 2 else -0.11149546, 62.5)
        measured = Measurement(step, (0.7,), (0.6,), c)
        if measured.finite:
            made.update(measured, 1e-3)
    return [t.data for t in tuned]


@pytest.mark.parametrize("rule", ["mezo", "scalar", "full", "window"])
def test_a_journal_leads_to_the_same_bits(rule: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for a, b in zip(*(replayed(x, rule, monkeypatch) for x in (reference, triton)), strict=True):
        assert equal(a, b)
