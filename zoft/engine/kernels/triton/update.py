# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-calls, allow-untyped-decorators
# mypy: disable-error-code=assignment
# ruff: noqa: RUF005  (Triton's language has no unpacking)
"""The update sweeps in Triton: one launch for a parameter, two if its directions are rank-1.

A program owns some chunks of 64 neighbours and keeps their sums, and for a window their moments, in
registers. Every direction's calls are made once for all of them. No two programs write one element and
every sum is exact in any order, so the result has the reference's bits.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
import triton
import triton.language as tl
from torch import Tensor

from zoft.engine.kernels.numerics.exact_sum import DirectionSum, Rounding
from zoft.engine.kernels.triton.device import (
    HALF_ROWS,
    LANES,
    PURPOSE_ROUNDING,
    ROW,
    SIGN_ROWS,
    element_half,
    flipped,
    half_word,
    load_float,
    philox_calls,
    store_nearest,
    store_stochastic,
    tile_words,
)
from zoft.engine.kernels.triton.launch import SWEEP, on, table_on
from zoft.engine.kernels.triton.signs import draw_factors
from zoft.recipe.sections.optimizers.rule import AdamConstants
from zoft.system.accelerator import send

SUM, STORED, WINDOW, AMSGRAD = 0, 1, 2, 3
_SUM, _WINDOW, _AMSGRAD = tl.constexpr(SUM), tl.constexpr(WINDOW), tl.constexpr(AMSGRAD)
_PER_STEP = ["terms", "sums", "seed", "param", "decay", "beta1", "beta2", "rest1", "rest2", "lr",
             "correction", "eps", "rounding_seed", "rounding_step"]  # fmt: skip
# Aligned pointers would be read several neighbours at a time, by other lanes than drew their signs.
_WEIGHTS = ["weight", "exp_avg", "exp_avg_sq", "max_exp_avg_sq", "u", "v_factors", "n", "rows",
            "columns"]  # fmt: skip


@triton.jit
def _zeros(PAIRS: tl.constexpr, DTYPE: tl.constexpr):
    zero = tl.zeros((PAIRS, LANES), DTYPE)
    return zero, zero, zero, zero, zero, zero, zero, zero


@triton.jit
def _signs_added(total, words, coefficient, row):
    """total + coefficient * z, whose pairs of rows begin at `row` (PAIRS, 1) of the tile."""
    new = ()
    for i in tl.static_range(8):
        new = new + (total[i] + flipped(coefficient, words[i % 4][None, :], row + i // 4),)
    return new


@triton.jit
def _gaussians_added(total, words, coefficient, table):
    """The same in float64, where integers times the table's 24 bits are exact."""
    new = ()
    for i in tl.static_range(8):
        z = tl.load(table + half_word(words[i % 4], i // 4)[None, :])
        new = new + (total[i] + coefficient.to(tl.float64) * z.to(tl.float64),)
    return new


@triton.jit
def _factors_added(total, u, v, coefficient, terms, pair, lane):
    """total + coefficient * u v^T; one row of the matrix in the place of each pair."""
    # As wide as the sums though one number serves a row: it would have to cross lanes otherwise.
    at = pair + 0 * lane[None, :]
    down = coefficient * tl.load(u + at * terms).to(tl.float32)
    new = ()
    for i in tl.static_range(8):
        across = tl.load(v + i * LANES + lane).to(tl.float32)
        # An integer below 2**24 either way, so fusing changes nothing.
        new = new + (tl.fma(down, tl.broadcast_to(across[None, :], down.shape), total[i]),)
    return new


@triton.jit
def _gradients(total, unit):
    """unit * total in float32."""
    new = ()
    for i in tl.static_range(8):
        new = new + (total[i].to(tl.float32) * unit,)
    return new


@triton.jit
def _moment1(m, g, beta1, rest1):
    return m * beta1 + g * rest1


@triton.jit
def _moment2(v, averaged, beta2, rest2):
    return v * beta2 + (averaged * averaged) * rest2


@triton.jit
def _moments(m, v, g, beta1, beta2, rest1, rest2):
    new_m, new_v = (), ()
    for i in tl.static_range(8):
        mi = _moment1(m[i], g[i], beta1, rest1)
        new_m, new_v = new_m + (mi,), new_v + (_moment2(v[i], mi, beta2, rest2),)
    return new_m, new_v


@triton.jit
def _stepped(x, m, v, decay, lr, correction, eps):
    root = tl.sqrt_rn(tl.div_rn(v, tl.full(v.shape, correction, tl.float32)))
    return x * decay - tl.div_rn(m * lr, root + eps)


@triton.jit
def _term(plan, t):
    """Step, k and the integer coefficient of term t."""
    step, k = tl.load(plan + 3 * t), tl.load(plan + 3 * t + 1)
    return step, k, tl.load(plan + 3 * t + 2).to(tl.float32)


@triton.jit
def _unit(plan, terms, s):
    """The power of two of the s-th sum, and where its terms end."""
    at = plan + 3 * terms + 2 * s
    return tl.load(at).to(tl.int32).to(tl.float32, bitcast=True), tl.load(at + 1).to(tl.int32)


@triton.jit
def _write(weight, exp_avg, exp_avg_sq, max_exp_avg_sq, start, room, lane, g, m, v, decay, beta1,
           beta2, rest1, rest2, lr, correction, eps, seed, step, param,
           MODE: tl.constexpr, ALIGNED: tl.constexpr):  # fmt: skip
    """Update the 512 elements from each of `start` (PAIRS, 1) on; `room` (PAIRS, 1) of them are there.

    ALIGNED: the starts are multiples of 512, so that one call of a lane rounds eight elements.
    """
    ROUND: tl.constexpr = weight.dtype.element_ty != tl.float32
    KEEPS: tl.constexpr = MODE != _SUM and MODE != _WINDOW
    # Sixteen loads to a lane before the first store (see `_rows` of triton_probe.py), not more:
    # registers are short.
    GROUP: tl.constexpr = min(8, 16 // g[0].shape[0])
    last: tl.constexpr = PURPOSE_ROUNDING
    words = (lane, lane, lane, lane)
    if ROUND and ALIGNED:
        block = start // 8 + lane[None, :]  # 64 calls for 512 elements
        low, high = block.to(tl.uint32), (block >> 32).to(tl.uint32)
        words = philox_calls(low, high, seed, step, param, last)
    for first in tl.static_range(0, 8, GROUP):
        old, old_m, old_v, largest = (), (), (), ()
        for i in tl.static_range(first, first + GROUP):
            inside = i * LANES + lane[None, :]
            mask, at = inside < room, start + inside
            old = old + (load_float(weight + at, mask),)
            if KEEPS:
                old_m = old_m + (tl.load(exp_avg + at, mask=mask),)
                old_v = old_v + (tl.load(exp_avg_sq + at, mask=mask),)
            if MODE == _AMSGRAD:
                largest = largest + (tl.load(max_exp_avg_sq + at, mask=mask),)
        for i in tl.static_range(first, first + GROUP):
            inside = i * LANES + lane[None, :]
            mask, at = inside < room, start + inside
            if MODE == _SUM:
                x = old[i - first] * decay + g[i]
            else:
                if KEEPS:
                    mi = _moment1(old_m[i - first], g[i], beta1, rest1)
                    averaged = g[i] if MODE == _AMSGRAD else mi
                    vi = _moment2(old_v[i - first], averaged, beta2, rest2)
                    tl.store(exp_avg + at, mi, mask=mask)
                    tl.store(exp_avg_sq + at, vi, mask=mask)
                    if MODE == _AMSGRAD:
                        vi = tl.where(vi > largest[i - first], vi, largest[i - first])
                        tl.store(max_exp_avg_sq + at, vi, mask=mask)
                else:
                    mi, vi = m[i], v[i]
                x = _stepped(old[i - first], mi, vi, decay, lr, correction, eps)
            if ROUND:
                if ALIGNED:
                    half = half_word(words[i % 4], i // 4)
                else:
                    half = element_half(at, seed, step, param, last)
                store_stochastic(weight + at, x, half, mask)
            else:
                store_nearest(weight + at, x, mask)


@triton.jit(do_not_specialize=_PER_STEP, do_not_specialize_on_alignment=_WEIGHTS)
def dense_kernel(weight, exp_avg, exp_avg_sq, max_exp_avg_sq, plan, terms, sums, table,
                 n: tl.int64, seed: tl.int64, param: tl.int64, decay: tl.float32, beta1: tl.float32,
                 beta2: tl.float32, rest1: tl.float32, rest2: tl.float32, lr: tl.float32,
                 correction: tl.float32, eps: tl.float32, rounding_seed: tl.int64,
                 rounding_step: tl.int64, MODE: tl.constexpr, GAUSSIAN: tl.constexpr,
                 PAIRS: tl.constexpr):  # fmt: skip
    """PAIRS pairs of rows of 256 elements; `terms` terms in `sums` sums as `_plan` lays them out."""
    KIND: tl.constexpr = tl.float64 if GAUSSIAN else tl.float32
    TILE_PAIRS: tl.constexpr = (HALF_ROWS if GAUSSIAN else SIGN_ROWS) // 2
    lane, pair = tl.arange(0, LANES), tl.arange(0, PAIRS)[:, None]
    first = tl.program_id(0).to(tl.int64) * PAIRS
    tile, row = first // TILE_PAIRS, 2 * ((first % TILE_PAIRS).to(tl.int32) + pair)
    m, v = _zeros(PAIRS, tl.float32), _zeros(PAIRS, tl.float32)
    g, begin = m, 0
    for s in range(sums):
        unit, end = _unit(plan, terms, s)
        total = _zeros(PAIRS, KIND)
        for t in range(begin, end):
            step, k, coefficient = _term(plan, t)
            words = tile_words(tile, lane, seed, step, param, k)  # PURPOSE_DENSE is 0
            if GAUSSIAN:
                total = _gaussians_added(total, words, coefficient, table)
            else:
                total = _signs_added(total, words, coefficient, row)
        begin, g = end, _gradients(total, unit)
        if MODE == _WINDOW:
            m, v = _moments(m, v, g, beta1, beta2, rest1, rest2)
    start = (first + pair) * (2 * ROW)
    room = tl.minimum(tl.maximum(tl.cast(n, tl.int64) - start, 0), 2 * ROW).to(tl.int32)
    _write(weight, exp_avg, exp_avg_sq, max_exp_avg_sq, start, room, lane, g, m, v, decay, beta1,
           beta2, rest1, rest2, lr, correction, eps, rounding_seed, rounding_step, param,
           MODE, True)  # fmt: skip


@triton.jit(
    do_not_specialize=[*_PER_STEP, "parts", "batches"], do_not_specialize_on_alignment=_WEIGHTS
)
def rank1_kernel(weight, exp_avg, exp_avg_sq, max_exp_avg_sq, plan, terms, sums, u, v_factors,
                 parts, batches, stride: tl.int64, rows: tl.int64, columns: tl.int64, param: tl.int64,
                 decay: tl.float32, beta1: tl.float32, beta2: tl.float32, rest1: tl.float32,
                 rest2: tl.float32, lr: tl.float32, correction: tl.float32, eps: tl.float32,
                 rounding_seed: tl.int64, rounding_step: tl.int64, MODE: tl.constexpr,
                 ALIGNED: tl.constexpr, ROWS: tl.constexpr):  # fmt: skip
    """ROWS rows and 512 columns of a matrix, `parts` programs to its width and `batches` to its height;
    one matrix after the other.

    u (all rows, terms) and v_factors (terms, stride) hold +-1 in int8. ALIGNED: columns % 512 == 0.
    """
    lane, pair = tl.arange(0, LANES), tl.arange(0, ROWS)[:, None]
    rows, columns = tl.cast(rows, tl.int64), tl.cast(columns, tl.int64)
    batch = tl.program_id(0) // parts
    matrix, inside = (batch // batches).to(tl.int64), (batch % batches).to(tl.int64) * ROWS
    first = matrix * rows + inside
    column = (tl.program_id(0) % parts).to(tl.int64) * 512
    across = v_factors + matrix * columns + column
    height = tl.minimum(rows - inside, ROWS).to(tl.int32)
    width = tl.minimum(columns - column, 512).to(tl.int32)
    m, v = _zeros(ROWS, tl.float32), _zeros(ROWS, tl.float32)
    g, begin = m, 0
    for s in range(sums):
        unit, end = _unit(plan, terms, s)
        total = _zeros(ROWS, tl.float32)
        for t in range(begin, end):
            _, _, coefficient = _term(plan, t)
            total = _factors_added(total, u + first * terms + t, across + t * stride,
                                   coefficient, terms, pair, lane)  # fmt: skip
        begin, g = end, _gradients(total, unit)
        if MODE == _WINDOW:
            m, v = _moments(m, v, g, beta1, beta2, rest1, rest2)
    start = (first + pair) * columns + column
    room = tl.where(pair < height, width, 0)
    _write(weight, exp_avg, exp_avg_sq, max_exp_avg_sq, start, room, lane, g, m, v, decay, beta1,
           beta2, rest1, rest2, lr, correction, eps, rounding_seed, rounding_step, param,
           MODE, ALIGNED)  # fmt: skip


def update_dense(
    weight: Tensor, sums: Sequence[DirectionSum], *, param: int, decay: float, rounding: Rounding,
    adam: AdamConstants | None = None, moments: Sequence[Tensor] = (),
) -> None:  # fmt: skip
    """Move `weight` in place by sums of dense directions, in one sweep; see `reference`."""
    if weight.numel() == 0:
        return
    plan, mode, terms = _plan(sums, weight.device), _mode(adam, moments), _terms(sums)
    gaussian = sums[0].gaussian
    pairs = pairs_of(mode, gaussian)
    with on(weight.device):
        table = table_on(weight.device) if gaussian else None
        dense_kernel[(-(-weight.numel() // (512 * pairs)),)](
            weight, *_pointers(moments), plan, terms, len(sums), table, weight.numel(),
            sums[0].seed, *_numbers(param, decay, adam, rounding), mode, gaussian, pairs, **SWEEP,
        )  # fmt: skip


def update_rank1(
    weight: Tensor, sums: Sequence[DirectionSum], *, param: int, decay: float, rounding: Rounding,
    adam: AdamConstants | None = None, moments: Sequence[Tensor] = (),
) -> None:  # fmt: skip
    """Move matrices by sums of directions u v^T: draws the factors, then one sweep; see `reference`."""
    if weight.numel() == 0:
        return
    plan, mode, terms = _plan(sums, weight.device), _mode(adam, moments), _terms(sums)
    rows, columns = weight.shape[-2:]
    matrices = math.prod(weight.shape[:-2])
    aligned, parts = columns % 512 == 0, -(-columns // 512)
    batch = rows_of(mode, aligned)
    batches = -(-rows // batch)
    with on(weight.device):
        u, v = draw_factors(
            plan, terms, seed=sums[0].seed, param=param, rows=matrices * rows,
            columns=matrices * columns,
        )  # fmt: skip
        rank1_kernel[(matrices * batches * parts,)](
            weight, *_pointers(moments), plan, terms, len(sums), u, v, parts, batches,
            v.shape[1], rows, columns, *_numbers(param, decay, adam, rounding), mode, aligned, batch,
            **SWEEP,
        )  # fmt: skip


def _mode(adam: AdamConstants | None, moments: Sequence[Tensor]) -> int:
    return SUM if adam is None else {0: WINDOW, 2: STORED, 3: AMSGRAD}[len(moments)]


def _pointers(moments: Sequence[Tensor]) -> tuple[Tensor | None, ...]:
    """m, v and the largest v; None for what a rule does not store."""
    return (*moments, *(3 - len(moments)) * (None,))


def _terms(sums: Sequence[DirectionSum]) -> int:
    return sum(len(each.n) for each in sums)


def _numbers(
    param: int, decay: float, adam: AdamConstants | None, rounding: Rounding
) -> tuple[int | float, ...]:
    """The kernels' arguments that change from step to step or from parameter to parameter."""
    adam = adam or AdamConstants(beta1=0.0, beta2=0.0, lr=0.0, correction=1.0, eps=0.0)
    return (param, decay, *adam.constants(), rounding.seed, rounding.step)


def pairs_of(mode: int, gaussian: bool) -> int:
    """Pairs of rows to a program: what its registers hold. More would spread the calls further, but
    leave too few programs at work to cover memory's latency."""
    return 1 if gaussian else 8 if mode == SUM else 4


def rows_of(mode: int, aligned: bool) -> int:
    """Rows of a matrix to a program along rank-1 directions; divides 8, as `draw_factors` pads."""
    return 8 if mode == SUM and aligned else 4


# The last update's plan: one copy to the device serves all parameters of a step.
_last: tuple[list[DirectionSum], Tensor] | None = None


def _plan(sums: Sequence[DirectionSum], device: torch.device) -> Tensor:
    """Flat int64: (step, k, n) of every term, then (bits of float32 grid, end) of every sum."""
    global _last
    if _last is not None and _last[1].device == device:
        known = _last[0]
        if len(known) == len(sums) and all(a is b for a, b in zip(known, sums, strict=True)):
            return _last[1]
    parts = [np.stack([t.steps, t.ks, t.n.astype(np.int64)], axis=1).reshape(-1) for t in sums]
    units = np.array([t.grid for t in sums], np.float32).view(np.int32).astype(np.int64)
    ends = np.cumsum([len(t.n) for t in sums])
    parts.append(np.stack([units, ends], axis=1).reshape(-1))
    plan = send(torch.from_numpy(np.concatenate(parts)), device)
    _last = (list(sums), plan)
    return plan
