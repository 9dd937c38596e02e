"""The operators: what they declare is what they do, and one compiled graph serves every step."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch._dynamo.testing import CompileCounterWithBackend

from zoft.kernels import ops, reference
from zoft.kernels.terms import Rounding, make_terms

SEED, STEP, K, PARAM = 2**32 - 3, 17, 5, 0xDEADBEEF
ADDRESS = {"seed": SEED, "step": STEP, "param": PARAM, "k": K}


def address() -> Tensor:
    return torch.tensor([SEED, STEP, K])


def cases() -> dict[str, tuple[object, tuple[object, ...]]]:
    """Operator and arguments; fresh tensors every time."""
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(6, 40, generator=generator)
    x = torch.randn(4, 40, generator=generator).bfloat16()
    which, scale = torch.tensor([1, 0]), torch.tensor([1e-2])
    u, v = (torch.ones(2, n, dtype=torch.int8) for n in (6, 40))
    return {
        "perturb": (ops.perturb, (weight.bfloat16(), weight, address(), scale, PARAM, False, 7)),
        "perturb_pair": (
            ops.perturb_pair,
            (weight + 1, weight + 2, weight, address(), scale, PARAM, True),
        ),
        "perturb_rows": (
            ops.perturb_rows,
            (weight[:2] + 1, weight, torch.tensor([5, 0]), address(), scale, PARAM, False),
        ),
        "perturb_each": (
            ops.perturb_each,
            (weight[:2] + 1, weight[0].clone(), address()[:2], which, torch.ones(2), PARAM),
        ),
        "project": (
            ops.project,
            (torch.zeros(1, 4), x, v[None], which, torch.ones(2), x.new_zeros(4, 48)),
        ),
        "project alone": (ops.project, (torch.zeros(1, 4), x, v[None], which, torch.ones(2))),
        "spread": (ops.spread, (x.new_zeros(4, 48), torch.ones(4), which, 40)),
        "widen": (ops.widen, (x.new_zeros(6, 48), weight.bfloat16(), u)),
        "prefill": (ops.prefill, (torch.zeros(4, 6), torch.ones(4), u, which, torch.ones(1, 6))),
        "add_directions": (
            ops.add_directions,
            (
                weight.bfloat16(),
                torch.tensor([[3, 0, 8191], [3, 1, -77]]),
                torch.tensor([SEED, 9, 3]),
                torch.tensor([2.0**-20, 0.99], dtype=torch.float64),
                PARAM,
                False,
                True,
            ),
        ),
    }


@pytest.mark.parametrize("case", cases())
def test_an_operator_is_what_it_declares(case):
    op, arguments = cases()[case]
    torch.library.opcheck(op, arguments)


def test_the_operators_forward():
    weight = torch.linspace(-1, 1, 240).view(6, 40)
    found, expected, other = (torch.empty(6, 40) for _ in range(3))
    scale = torch.tensor([1e-2])
    for gaussian in (False, True):
        key = {**ADDRESS, "scale": scale.item(), "gaussian": gaussian}
        ops.perturb_pair(found, other, weight, address(), scale, PARAM, gaussian, 9)
        reference.perturb(expected, weight, offset=9, **key)
        assert torch.equal(found, expected)
        ops.perturb(other, weight, address(), scale, PARAM, gaussian, 9)
        assert torch.equal(other, expected)
        rows = torch.tensor([5, 0])
        ops.perturb_rows(found[:2], weight, rows, address(), scale, PARAM, gaussian)
        reference.perturb_rows(expected[:2], weight, rows, **key)
        assert torch.equal(found[:2], expected[:2])
    ks, scales = torch.tensor([3, 9]), torch.tensor([1.0, -0.5])
    ops.perturb_each(found[:2], weight[0], address()[:2], ks, scales, PARAM)
    reference.perturb_each(
        expected[:2], weight[0], seed=SEED, step=STEP, param=PARAM, ks=ks, scales=scales
    )
    assert torch.equal(found[:2], expected[:2])


@pytest.mark.parametrize("rank1", [False, True])
def test_an_update_by_tensors_is_an_update_by_terms(rank1):
    addresses, coefficients = [(3, 0), (4, 1)], [1e-3, -3e-4]
    terms = make_terms(SEED, False, addresses, coefficients, rank1)
    found = torch.linspace(-1, 1, 240).view(6, 40).half()
    expected = found.clone()
    table = torch.stack([torch.from_numpy(x).long() for x in (terms.steps, terms.ks, terms.n)], 1)
    factors = torch.tensor([terms.unit, 0.99], dtype=torch.float64)
    ops.add_directions(found, table, torch.tensor([SEED, 9, 3]), factors, PARAM, False, rank1)
    reference.add_directions(expected, terms, param=PARAM, decay=0.99, rounding=Rounding(9, 3))
    assert torch.equal(found.view(torch.int16), expected.view(torch.int16))


def mlp(x: Tensor, up: Tensor, down: Tensor, address: Tensor, scale: Tensor) -> Tensor:
    """A block at theta + scale * z."""
    wide, narrow = torch.empty_like(up), torch.empty_like(down)
    ops.perturb(wide, up, address, scale, 1, False)
    hidden = torch.nn.functional.silu(torch.nn.functional.linear(x, wide))
    ops.perturb(narrow, down, address, scale, 2, False)
    return torch.nn.functional.linear(hidden, narrow)


@pytest.mark.filterwarnings("ignore:.*script_method.*:DeprecationWarning")  # inductor's import
@pytest.mark.parametrize("backend", ["aot_eager", "inductor"])
def test_one_graph_serves_every_step(backend):
    generator = torch.Generator().manual_seed(0)
    x, up, down = (torch.randn(s, generator=generator) for s in ((3, 16), (64, 16), (16, 64)))
    torch._dynamo.reset()
    counter = CompileCounterWithBackend(backend)
    compiled = torch.compile(mlp, fullgraph=True, backend=counter)
    seen = []
    with torch.no_grad():
        for seed, step, k, scale in (
            (1, 2, 0, 1e-2),
            (1, 2, 0, -1e-2),
            (1, 3, 4, 1e-2),
            (9, 3, 4, 0.5),
        ):
            arguments = (torch.tensor([seed, step, k]), torch.tensor([scale]))
            seen.append(compiled(x, up, down, *arguments))
            assert torch.equal(seen[-1], mlp(x, up, down, *arguments))
    assert counter.frame_count == 1
    assert not any(torch.equal(seen[0], other) for other in seen[1:])
