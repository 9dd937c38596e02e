"""Every CPU kernel's time per element, beside a copy of as many elements, interleaved.

    python benchmarks/kernel_time.py [--repeats 15] [--append]

The matrix is SmolLM2's embedding, 49,152 x 576: out of the caches. `copy` is Tensor.copy_ of the same
elements in the same type. The kernels of a pass work on 768 vectors of 576, as a batch of 16 rows does.
A bfloat16 row of `perturb` reads float32 weights and writes bfloat16, as a probe does; an update in
bfloat16 is of bfloat16 weights, with stochastic rounding.
"""

from __future__ import annotations

import time
from collections.abc import Callable

import torch
from machine import Log, arguments, ratios, report, spread
from torch import Tensor

from zoft.engine.kernels.cpu import sweeps as cpu
from zoft.engine.kernels.numerics.exact_sum import DirectionSum, Rounding, direction_sum
from zoft.recipe.sections.optimizers.rule import AdamConstants
from zoft.system.philox import PURPOSE_U, PURPOSE_V

ROWS, COLUMNS = 49152, 576
VECTORS, EXAMPLES = 768, 16
ADAM = AdamConstants(beta1=0.9, beta2=0.99, lr=1e-9, correction=1.0, eps=1e-8)
WARM = 2
Case = tuple[int, Callable[[], object]]  # elements, the call


def main() -> None:
    """Measure float32 and bfloat16 and print a table."""
    parser = arguments(__doc__, rows=ROWS, repeats=15)
    a = parser.parse_args()
    log = Log("kernels", rows=a.rows)
    for dtype in ("float32", "bfloat16"):
        missing = [i for i in range(a.repeats) if not log.find(dtype=dtype, repeat=i)]
        if not missing:
            continue
        cases = {**_sweeps(a.rows, dtype), **_in_a_pass(a.rows, dtype)}
        names = list(cases)
        for turn, i in enumerate([-1] * WARM + missing):
            row = {}
            for name in names[turn % len(names) :] + names[: turn % len(names)]:
                elements, call = cases[name]
                begun = time.perf_counter()
                call()
                row[name] = round((time.perf_counter() - begun) * 1e9 / elements, 5)
            if i >= 0:
                log.add(dtype=dtype, repeat=i, **{name: row[name] for name in names})
        del cases
    lines = ["| kernel | compute | ns per element | times a copy |", "|---|---|---|---|"]
    for dtype in ("float32", "bfloat16"):
        rows = [x for x in log.find(dtype=dtype) if x["repeat"] < a.repeats]
        for name in [x for x in rows[0] if x not in ("dtype", "repeat")]:
            lines.append(
                f"| {name} | {dtype} | {spread([x[name] for x in rows])} | "
                f"{spread(ratios(rows, name, 'copy'), 2)} |"
            )
    report(f"Kernels, {a.rows:,} x {COLUMNS}, {a.repeats} repeats", lines, to_file=a.append)


def _sweeps(rows: int, dtype: str) -> dict[str, Case]:
    """The kernels that go over a whole weight."""
    kind: torch.dtype = getattr(torch, dtype)
    weight = torch.randn(rows, COLUMNS, generator=torch.manual_seed(0))
    own, other = weight.to(kind), torch.empty(rows, COLUMNS, dtype=kind)
    out, m, v = torch.empty_like(other), torch.zeros_like(weight), torch.zeros_like(weight)
    z = {"seed": 0, "step": 1, "param": 7, "k": 0, "scale": 1e-3, "gaussian": False}
    sweep = {"param": 7, "decay": 1.0, "rounding": Rounding(0, 1)}
    n = weight.numel()

    def terms(count: int, gaussian: bool = False) -> list[DirectionSum]:
        addresses = [(1 + i, 0) for i in range(count)]
        factors = [1e-9 + 1e-10 * i for i in range(count)]
        return [direction_sum(0, gaussian, addresses, factors)]

    def add(count: int, *, gaussian: bool = False) -> Case:
        return n, lambda: cpu.update_dense(own, terms(count, gaussian), **sweep)  # type: ignore[arg-type]

    def add_rank1(count: int) -> Case:
        return n, lambda: cpu.update_rank1(own, terms(count), **sweep)  # type: ignore[arg-type]

    window = [direction_sum(0, False, [(1 + i, 0)], [1e-3]) for i in range(44)]
    full: dict[str, object] = {**sweep, "adam": ADAM, "moments": (m, v)}
    recomputed: dict[str, object] = {**sweep, "adam": ADAM}
    return {
        "copy": (n, lambda: other.copy_(own)),
        "perturb": (n, lambda: cpu.perturb(other, weight, **z)),  # type: ignore[arg-type]
        "perturb, gaussian": (n, lambda: cpu.perturb(other, weight, **{**z, "gaussian": True})),  # type: ignore[arg-type]
        "perturb_pair": (n, lambda: cpu.perturb_pair(other, out, weight, **z)),  # type: ignore[arg-type]
        "add_directions, 1": add(1),
        "add_directions, 44": add(44),
        "add_directions, 1, gaussian": add(1, gaussian=True),
        "add_directions, 1, rank-1": add_rank1(1),
        "add_directions, 16, rank-1": add_rank1(16),
        "add_directions, 44, rank-1": add_rank1(44),
        "radazo_full": (n, lambda: cpu.update_dense(own, window[:1], **full)),  # type: ignore[arg-type]
        "radazo_window, 44": (n, lambda: cpu.update_dense(own, window, **recomputed)),  # type: ignore[arg-type]
    }


def _in_a_pass(rows: int, dtype: str) -> dict[str, Case]:
    """The kernels that work on a batch's vectors or on looked-up rows."""
    kind: torch.dtype = getattr(torch, dtype)
    generator = torch.manual_seed(1)
    weight = torch.randn(rows, COLUMNS, generator=generator)
    x = torch.randn(VECTORS, COLUMNS, generator=generator).to(kind)
    index = torch.randint(0, rows, (VECTORS,), generator=generator)
    table = torch.tensor([[7, PURPOSE_U, COLUMNS, 0], [7, PURPOSE_V, COLUMNS, EXAMPLES * COLUMNS]])
    drawn = torch.empty(2 * EXAMPLES * COLUMNS, dtype=torch.int8)
    ks, which = torch.arange(EXAMPLES), torch.arange(EXAMPLES)
    cpu.signs(drawn, table, seed=0, step=1, ks=ks)
    v = drawn[: EXAMPLES * COLUMNS].view(1, EXAMPLES, COLUMNS)
    scales, s = torch.full((EXAMPLES,), 1e-3), torch.empty(1, VECTORS)
    y, looked_up = torch.empty(VECTORS, COLUMNS), torch.empty(VECTORS, COLUMNS, dtype=kind)
    each = torch.empty(EXAMPLES, COLUMNS)
    z = {"seed": 0, "step": 1, "param": 7}
    dense = {**z, "k": 0, "scale": 1e-3, "gaussian": False}

    def vector(row: Tensor) -> Case:
        return each.numel(), lambda: cpu.perturb_each(each, row, ks=ks, scales=scales, **z)

    return {
        "perturb_rows": (x.numel(), lambda: cpu.perturb_rows(looked_up, weight, index, **dense)),  # type: ignore[arg-type]
        "perturb_each": vector(weight[0]),
        "signs": (drawn.numel(), lambda: cpu.signs(drawn, table, seed=0, step=1, ks=ks)),
        "project": (x.numel(), lambda: cpu.project(s, x, v, which, scales)),
        "prefill": (y.numel(), lambda: cpu.prefill(y, s[0], v[0], which)),
    }


if __name__ == "__main__":
    main()
