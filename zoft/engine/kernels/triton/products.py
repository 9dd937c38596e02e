# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-calls, allow-untyped-decorators
# mypy: disable-error-code=assignment
# ruff: noqa: RUF005  (Triton's language has no unpacking)
"""What stands around a matrix product with rank-1 directions, in Triton: one launch each."""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from zoft.engine.kernels.triton.device import load_float, store_nearest, widened
from zoft.engine.kernels.triton.launch import PRODUCT, on, require_contiguous

_VECTORS = tl.constexpr(4)  # vectors to a program of `project`
_COLUMNS = tl.constexpr(512)


@triton.jit(do_not_specialize=["vectors", "count"])
def project_kernel(s, x, v, which, scales, padded, vectors, columns: tl.int64, factors: tl.int64,
                   count, width: tl.int64, J: tl.constexpr):  # fmt: skip
    """_VECTORS rows of x (vectors, columns); `factors` vectors to each v[j]; see `project`."""
    t = tl.program_id(0).to(tl.int64) * _VECTORS + tl.arange(0, _VECTORS)
    here = t < vectors
    run = t // count
    row = tl.load(which + run, mask=here, other=0)
    total = ()
    for _ in tl.static_range(J):
        total = total + (tl.zeros((_VECTORS, _COLUMNS), tl.float32),)
    for begin in range(0, columns, _COLUMNS):
        c = begin + tl.arange(0, _COLUMNS)[None, :]
        mask = here[:, None] & (c < columns)
        value = tl.load(x + t[:, None] * columns + c, mask=mask, other=0.0)
        if padded is not None:
            tl.store(padded + t[:, None] * width + c, value, mask=mask)
        new = ()
        for j in tl.static_range(J):
            sign = tl.load(v + (j * factors + row[:, None]) * columns + c, mask=mask, other=0)
            # x * sign without a conversion, which costs four times what this does.
            flip = sign.to(tl.int32).to(tl.uint32, bitcast=True) & 0x80000000
            bits = widened(value).to(tl.uint32, bitcast=True) ^ flip
            new = new + (total[j] + bits.to(tl.float32, bitcast=True),)
        total = new
    scale = tl.load(scales + run, mask=here, other=0.0)
    for j in tl.static_range(J):
        tl.store(s + j * vectors.to(tl.int64) + t, tl.sum(total[j], 1) * scale, mask=here)


@triton.jit(do_not_specialize=["vectors", "count"])
def spread_kernel(padded, s, which, vectors, columns: tl.int64, width: tl.int64, count,
                  BLOCK: tl.constexpr):  # fmt: skip
    """16 rows of padded (vectors, width): its columns from `columns` on, BLOCK at least."""
    t = tl.program_id(0).to(tl.int64) * 16 + tl.arange(0, 16)
    here = t < vectors
    row = tl.load(which + t // count, mask=here, other=0)
    value = tl.load(s + t, mask=here, other=0.0)
    p = tl.arange(0, BLOCK)[None, :]
    out = tl.where(p == row[:, None], value[:, None], 0.0)
    mask = here[:, None] & (columns + p < width)
    store_nearest(padded + t[:, None] * width + columns + p, out, mask)


@triton.jit(do_not_specialize=["parts", "factors"])
def widen_kernel(out, weight, u, parts, rows: tl.int64, columns: tl.int64, width: tl.int64,
                 factors):  # fmt: skip
    """8 rows and 512 columns of out (rows, width); u (factors, rows)."""
    r = (tl.program_id(0) // parts).to(tl.int64) * 8 + tl.arange(0, 8)[:, None]
    c = (tl.program_id(0) % parts).to(tl.int64) * 512 + tl.arange(0, 512)[None, :]
    left, i = c < columns, c - columns
    value = load_float(weight + r * columns + c, left & (r < rows))
    sign = tl.load(u + i * rows + r, mask=(i >= 0) & (i < factors) & (r < rows), other=0)
    value = tl.where(left, value, sign.to(tl.float32))
    store_nearest(out + r * width + c, value, (r < rows) & (c < width))


@triton.jit(do_not_specialize=["parts", "vectors", "count", "biases"])
def prefill_kernel(y, s, u, which, bias, parts, vectors, columns: tl.int64, count, biases):
    """8 rows and 512 columns of y (vectors, columns); bias (biases, columns), one or one to a run."""
    t = (tl.program_id(0) // parts).to(tl.int64) * 8 + tl.arange(0, 8)
    here = t < vectors
    run = t // count
    row = tl.load(which + run, mask=here, other=0)
    o = (tl.program_id(0) % parts).to(tl.int64) * 512 + tl.arange(0, 512)[None, :]
    mask = here[:, None] & (o < columns)
    sign = tl.load(u + row[:, None] * columns + o, mask=mask, other=0).to(tl.float32)
    value = tl.load(s + t, mask=here, other=0.0)[:, None] * sign
    if bias is not None:
        at = tl.where(biases == 1, 0, run)[:, None] * columns + o
        value = value + tl.load(bias + at, mask=mask, other=0.0)
    tl.store(y + t[:, None] * columns + o, value, mask=mask)


def project(
    s: Tensor, x: Tensor, v: Tensor, which: Tensor, scales: Tensor, padded: Tensor | None = None
) -> None:
    """s[j, t] = scales[row] * sum_c x[t, c] * v[j, which[row], c] in float32; optionally copy x.

    x (N, C) · v (J, n, C) int8 · s (J, N) float32 · which (R,) int64 and scales (R,) float32 belong to
    the R equal runs of N / R vectors. padded (N, C + P): its first C columns become x, in x's type.
    All contiguous. The order of a sum depends on C alone, not on N.
    """
    if x.shape[0] == 0:
        return
    require_contiguous(s, x, v, which, scales, padded)
    with on(x.device):
        project_kernel[(-(-x.shape[0] // _VECTORS.value),)](
            s, x, v, which, scales, padded, x.shape[0], x.shape[1], v.shape[1],
            x.shape[0] // which.shape[0], 0 if padded is None else padded.shape[1], v.shape[0],
            **PRODUCT,
        )  # fmt: skip


def spread(padded: Tensor, s: Tensor, which: Tensor, columns: int) -> None:
    """padded[t, columns + which[row]] = s[t]; zero in the others of its last P columns.

    padded (N, columns + P) as `project` copied it · s (N,) float32 · which (R,) int64 below P, for R
    equal runs of vectors. Multiplied with `widen`'s matrix, they add s * u inside the product.
    """
    vectors, width = padded.shape
    if vectors * (width - columns) == 0:
        return
    require_contiguous(padded, s, which)
    block = triton.next_power_of_2(width - columns)
    with on(padded.device):
        spread_kernel[(-(-vectors // 16),)](
            padded, s, which, vectors, columns, width, vectors // which.shape[0], block, **PRODUCT
        )


def widen(out: Tensor, weight: Tensor, u: Tensor) -> None:
    """out (O, C + P) = [weight, u^T, zeros] in out's dtype; weight (O, C), u (n, O) int8, n <= P."""
    rows, width = out.shape
    if rows * width == 0:
        return
    require_contiguous(out, weight, u)
    parts = -(-width // 512)
    with on(out.device):
        widen_kernel[(-(-rows // 8) * parts,)](
            out, weight, u, parts, rows, weight.shape[1], width, u.shape[0], **PRODUCT
        )


def prefill(y: Tensor, s: Tensor, u: Tensor, which: Tensor, bias: Tensor | None = None) -> None:
    """y[t] = s[t] * u[which[row]] + bias[row] in float32, to be accumulated upon by a product.

    y (N, O) float32 · s (N,) float32 · u (n, O) int8 · which (R,) int64, for R equal runs of vectors ·
    bias (R, O) or (1, O) float32, or None.
    """
    vectors, columns = y.shape
    if vectors * columns == 0:
        return
    require_contiguous(y, s, u, which, bias)
    parts = -(-columns // 512)
    with on(y.device):
        prefill_kernel[(-(-vectors // 8) * parts,)](
            y, s, u, which, bias, parts, vectors, columns, vectors // which.shape[0],
            1 if bias is None else bias.shape[0], **PRODUCT,
        )  # fmt: skip
