# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-calls, allow-untyped-decorators
"""The factors of rank-1 directions in Triton: +-1 in int8."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from zoft.engine.kernels.triton.device import (
    LANES,
    PURPOSE_U,
    PURPOSE_V,
    ROW,
    SIGN_ROWS,
    tile_words,
)
from zoft.engine.kernels.triton.launch import SWEEP, on

SPLIT = 4  # programs that share a factor's tiles, where it has several


@triton.jit
def _draw(out, stride, length, seed, step, param, last):
    """out[stride * i] = signs for i < length, the tiles taken in turns by the programs of axis 1."""
    TILE: tl.constexpr = ROW * SIGN_ROWS
    lane = tl.arange(0, LANES)
    length = tl.cast(length, tl.int64)
    tiles = ((length + TILE - 1) // TILE).to(tl.int32)
    for tile in range(tl.program_id(1), tiles, tl.num_programs(1)):
        begin = tl.cast(tile, tl.int64) * TILE
        room = tl.minimum(length - begin, TILE).to(tl.int32)
        words = tile_words(begin // TILE, lane, seed, step, param, last)
        for row in range(0, (room + ROW - 1) // ROW):
            for j in tl.static_range(4):
                inside = row * ROW + j * LANES + lane
                sign = 1 - 2 * ((words[j] >> row) & 1).to(tl.int32)
                tl.store(out + (begin + inside) * stride, sign.to(tl.int8), mask=inside < room)


@triton.jit(do_not_specialize=["n", "seed", "step"])
def signs_kernel(out, table, ks, n, seed: tl.int64, step: tl.int64):
    """Vector i of factor f: program f * n + i. `table` as `signs` takes it."""
    f, i = tl.program_id(0) // n, tl.program_id(0) % n
    param, purpose = tl.load(table + 4 * f), tl.load(table + 4 * f + 1)
    length, offset = tl.load(table + 4 * f + 2), tl.load(table + 4 * f + 3)
    to = out + offset + i.to(tl.int64) * length
    _draw(to, 1, length, seed, step, param, (purpose << 24) | tl.load(ks + i))


@triton.jit(do_not_specialize=["terms", "seed", "param"])
def factors_kernel(u, v, plan, terms, seed: tl.int64, param: tl.int64, rows: tl.int64,
                   columns: tl.int64, width: tl.int64):  # fmt: skip
    """u of term t: program t; v: program terms + t. (step, k) from an update's plan."""
    t = tl.program_id(0) % terms
    step, k = tl.load(plan + 3 * t), tl.load(plan + 3 * t + 1)
    if tl.program_id(0) < terms:
        _draw(u + t, terms, rows, seed, step, param, k | PURPOSE_U)
    else:
        _draw(v + t.to(tl.int64) * width, 1, columns, seed, step, param, k | PURPOSE_V)


def signs(out: Tensor, table: Tensor, *, seed: int, step: int, ks: Tensor) -> None:
    """The factors u and v of a step's rank-1 directions ks (n,), as +-1 in the flat int8 `out`.

    A row of the int64 `table` (F, 4) is (parameter id, purpose, length, offset) of one factor: its n
    vectors of that length stand in out[offset : offset + n * length], one after the other. Both
    tensors are on out's device, where nothing is read back.
    """
    factors, n = table.shape[0], ks.numel()
    if factors * n == 0:
        return
    with on(out.device):
        signs_kernel[(factors * n, SPLIT)](out, table, ks, n, seed, step, **SWEEP)


def draw_factors(
    plan: Tensor, terms: int, *, seed: int, param: int, rows: int, columns: int
) -> tuple[Tensor, Tensor]:
    """u (> rows, terms) and v (terms, > columns), int8: see `triton_update._plan`."""
    # Wherever a matrix begins, 8 rows and 512 columns: readers need no masks, and drop what is beyond.
    width = (columns // 512 + 1) * 512
    u = torch.empty(((rows // 8 + 1) * 8, terms), dtype=torch.int8, device=plan.device)
    v = torch.empty((terms, width), dtype=torch.int8, device=plan.device)
    if terms:
        factors_kernel[(2 * terms, SPLIT)](
            u, v, plan, terms, seed, param, rows, columns, width, **SWEEP
        )
    return u, v
