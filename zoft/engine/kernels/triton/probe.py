# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-calls, allow-untyped-decorators
# mypy: disable-error-code=assignment
# ruff: noqa: RUF005  (Triton's language has no unpacking)
"""The sweeps of a probe in Triton: W + scale * z into scratch, one launch each."""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from zoft.engine.kernels.triton.device import (
    HALF_ROWS,
    LANES,
    ROW,
    SIGN_ROWS,
    flipped,
    half_word,
    load_float,
    store_nearest,
    tile_words,
)
from zoft.engine.kernels.triton.launch import SWEEP, on, require_contiguous, table_on
from zoft.system.philox import last_word

_PER_STEP = ["pieces", "seed", "step", "param", "k", "scale"]  # their values make no new kernel


@triton.jit
def _rows(out, minus, weight, first, last, lane, words, row, scale, table,
          GAUSSIAN: tl.constexpr, BATCH: tl.constexpr, MASKED: tl.constexpr):  # fmt: skip
    """BATCH rows of one tile, to whose first element the pointers point; it has [first, last).

    All loads come before the first store: the compiler cannot know that they don't overlap, and one
    load at a time would wait for memory 128 times.
    """
    x = ()
    for c in tl.static_range(4 * BATCH):
        at = row * ROW + c * LANES + lane
        mask = (at >= first) & (at < last) if MASKED else None
        x = x + (load_float(weight + at, mask),)
    for c in tl.static_range(4 * BATCH):
        at = row * ROW + c * LANES + lane
        mask = (at >= first) & (at < last) if MASKED else None
        if GAUSSIAN:
            move = scale * tl.load(table + half_word(words[c % 4], row + c // 4))
        else:
            move = flipped(scale, words[c % 4], row + c // 4)
        store_nearest(out + at, x[c] + move, mask)
        if minus is not None:
            store_nearest(minus + at, x[c] - move, mask)


@triton.jit(
    do_not_specialize=_PER_STEP,
    do_not_specialize_on_alignment=["out", "minus", "weight", "count", "offset"],
)
def perturb_kernel(out, minus, weight, rows, ks, scales, table, count: tl.int64,
                   pieces, offset: tl.int64, seed: tl.int64, step: tl.int64, param: tl.int64,
                   k: tl.int64, scale: tl.float32,
                   GAUSSIAN: tl.constexpr, EACH: tl.constexpr):  # fmt: skip
    """One tile of one run of `count` neighbouring elements; `pieces` programs to a run.

    Run i starts at weight[rows[i] * count], or weight[0], and goes to out[i * count]. With EACH it has
    a k and a scale of its own, ks[i] and scales[i].
    """
    BATCH: tl.constexpr = 2 if GAUSSIAN else 4
    TILE: tl.constexpr = ROW * (HALF_ROWS if GAUSSIAN else SIGN_ROWS)
    program = tl.program_id(0)
    run, piece = (program // pieces).to(tl.int64), program % pieces
    count = tl.cast(count, tl.int64)
    if EACH:
        k = tl.load(ks + run)
        scale = tl.load(scales + run)
    scale = tl.cast(scale, tl.float32)
    start = tl.cast(0, tl.int64)
    if rows is not None:
        start = tl.load(rows + run) * count
    first = tl.cast(offset, tl.int64) + start  # the run's first element number
    tile = first // TILE + piece
    begin = tile * TILE - first
    if begin < count:
        lane = tl.arange(0, LANES)
        words = tile_words(tile, lane, seed, step, param, k)  # PURPOSE_DENSE is 0
        source, to = weight + start + begin, out + run * count + begin
        down = minus if minus is None else minus + run * count + begin
        if (begin >= 0) & (begin + TILE <= count):
            for row in range(0, TILE // ROW, BATCH):
                _rows(to, down, source, 0, 0, lane, words, row, scale, table,
                      GAUSSIAN, BATCH, False)  # fmt: skip
        else:
            low = tl.maximum(-begin, 0).to(tl.int32)
            high = tl.minimum(count - begin, TILE).to(tl.int32)
            for row in range(low // (ROW * BATCH) * BATCH, (high + ROW - 1) // ROW, BATCH):
                _rows(to, down, source, low, high, lane, words, row, scale, table,
                      GAUSSIAN, BATCH, True)  # fmt: skip


def _launch(
    out: Tensor,
    minus: Tensor | None,
    weight: Tensor,
    *,
    runs: int,
    count: int,
    param: int,
    gaussian: bool,
    offset: int = 0,
    rows: Tensor | None = None,
    ks: Tensor | None = None,
    scales: Tensor | None = None,
    seed: int,
    step: int,
    k: int = 0,
    scale: float = 0.0,
) -> None:
    require_contiguous(out, minus, weight, rows, ks, scales)
    tile = 512 if gaussian else 8192
    if rows is None:
        pieces = -(-(offset % tile + count) // tile)
    else:  # where a row starts in its tile is known on the device only
        pieces = count // tile if count % tile == 0 else -(-(count + tile - 1) // tile)
    if runs * pieces == 0:
        return
    table = table_on(weight.device) if gaussian else None
    with on(weight.device):
        perturb_kernel[(runs * pieces,)](
            out, minus, weight, rows, ks, scales, table, count, pieces, offset, seed, step, param,
            k, scale, gaussian, ks is not None, **SWEEP,
        )  # fmt: skip


def perturb(
    out: Tensor,
    weight: Tensor,
    *,
    offset: int = 0,
    seed: int,
    step: int,
    param: int,
    k: int,
    scale: float,
    gaussian: bool,
) -> None:
    """out = weight + scale * z in float32, rounded once to out's dtype (see `cpu.perturb`)."""
    last_word(0, k)
    _launch(
        out,
        None,
        weight,
        runs=1,
        count=weight.numel(),
        offset=offset,
        seed=seed,
        step=step,
        param=param,
        k=k,
        scale=scale,
        gaussian=gaussian,
    )


def perturb_pair(
    plus: Tensor,
    minus: Tensor,
    weight: Tensor,
    *,
    offset: int = 0,
    seed: int,
    step: int,
    param: int,
    k: int,
    scale: float,
    gaussian: bool,
) -> None:
    """plus = weight + scale * z and minus = weight - scale * z, each as `perturb` rounds it."""
    last_word(0, k)
    _launch(
        plus,
        minus,
        weight,
        runs=1,
        count=weight.numel(),
        offset=offset,
        seed=seed,
        step=step,
        param=param,
        k=k,
        scale=scale,
        gaussian=gaussian,
    )


def perturb_rows(
    out: Tensor,
    weight: Tensor,
    rows: Tensor,
    *,
    seed: int,
    step: int,
    param: int,
    k: int,
    scale: float,
    gaussian: bool,
) -> None:
    """out[i] = weight[rows[i]] + scale * z; weight (R, C), rows (n,) int64, out (n, C)."""
    last_word(0, k)
    _launch(
        out,
        None,
        weight,
        runs=rows.numel(),
        count=weight.shape[1],
        rows=rows,
        seed=seed,
        step=step,
        param=param,
        k=k,
        scale=scale,
        gaussian=gaussian,
    )


def perturb_each(
    out: Tensor, weight: Tensor, *, seed: int, step: int, param: int, ks: Tensor, scales: Tensor
) -> None:
    """out[i] = weight + scales[i] * z(ks[i]), signs; weight (C,), ks (n,) int64, out (n, C)."""
    _launch(
        out,
        None,
        weight,
        runs=ks.numel(),
        count=weight.numel(),
        ks=ks,
        scales=scales,
        seed=seed,
        step=step,
        param=param,
        gaussian=False,
    )
