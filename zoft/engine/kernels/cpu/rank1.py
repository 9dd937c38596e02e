"""The loops for rank-1 directions z = u v^T on a CPU; see `compiled.py` for the layout of bits.

Factors are drawn as int8 +-1: a step's factors of a 135M model and 16 examples are 6 MB.
"""

from __future__ import annotations

import numpy as np
from numba import njit

from zoft.engine.kernels.cpu.probe import (
    BFLOAT16,
    FLOAT32,
    ROW,
    _bfloat16,
    _bits,
    _float,
    _load,
    _store_nearest,
    philox_words,
)

_u32, _u64 = np.uint32, np.uint64
_jit = njit(nogil=True, cache=True, error_model="numpy")
# Order of summation and contraction are free where sums are exact, or part of a forward pass.
_jit_free = njit(nogil=True, cache=True, error_model="numpy", fastmath={"reassoc", "contract"})


@_jit
def signs_span(out, seed, step, param, last, length, begin):  # type: ignore[no-untyped-def]
    """out[begin : begin + length] = the signs of a vector of `length` elements, as int8."""
    words = np.empty(ROW, np.uint32)
    for tile in range((length + 32 * ROW - 1) // (32 * ROW)):
        philox_words(words, seed, step, param, last, tile)
        first = tile * 32 * ROW
        for part in range(min(32, (length - first + ROW - 1) // ROW)):
            at = _u64(begin + first + part * ROW)
            count = _u64(min(ROW, length - first - part * ROW))
            shift = _u32(part)
            for i in range(count):
                out[at + i] = np.int8(1) - np.int8(2) * np.int8((words[i] >> shift) & _u32(1))


@_jit
def signs_of_table(out, table, seed, step, ks):  # type: ignore[no-untyped-def]
    """Every factor of a table (param, purpose, length, offset) for the directions ks."""
    for row in range(table.shape[0]):
        param, purpose, length, at = table[row]
        for i in range(ks.size):
            signs_span(out, seed, step, param, purpose << 24 | ks[i], length, at + i * length)


@_jit
def signs_of_terms(out, seed, steps, ks, param, purpose):  # type: ignore[no-untyped-def]
    """out (terms, length): one factor of a matrix for each term."""
    for i in range(ks.size):
        signs_span(out[i], seed, steps[i], param, purpose << 24 | ks[i], out.shape[1], 0)


@_jit
def perturb_each_span(  # type: ignore[no-untyped-def]
    out, weight, kind, seed, step, param, purpose, ks, scales, drawn, begin, end
):
    """out[i] = weight + scales[i] * z(ks[i]) as float32 bits, for the rows [begin, end)."""
    n = _u64(drawn.size)
    x = np.empty(drawn.size, np.float32)
    _load(x, weight, _u64(0), n, kind)
    last_k = np.int64(-1)
    for row in range(begin, end):
        if ks[row] != last_k:
            signs_span(drawn, seed, step, param, purpose << 24 | ks[row], drawn.size, 0)
            last_k = ks[row]
        at, scale = _u64(row) * n, scales[row]
        for i in range(n):
            out[at + i] = _bits(x[i] + scale * np.float32(drawn[i]))


@_jit_free
def _dot(x, v, at, n):  # type: ignore[no-untyped-def]
    total = np.float32(0.0)
    for i in range(n):
        total += x[i] * np.float32(v[at + i])
    return total


@_jit
def project_span(  # type: ignore[no-untyped-def]
    s, x, kind, columns, v, which, scales, count, padded, stride, begin, end
):
    """s[j, t] = scale * x[t] . v[j, which]; copy x[t] to padded[t] where `padded` is not empty."""
    values = np.empty(columns, np.float32)
    n = _u64(columns)
    for t in range(begin, end):
        row = t // count
        at = _u64(t * columns)
        _load(values, x, at, n, kind)
        for j in range(s.shape[0]):
            s[j, t] = scales[row] * _dot(values, v[j], _u64(which[row] * columns), n)
        if stride:
            to = _u64(t * stride)
            for i in range(n):
                padded[to + i] = x[at + i]


@_jit
def widen_span(out, kind, weight, weight_kind, columns, stride, u, begin, end):  # type: ignore[no-untyped-def]
    """out[r] = [weight[r], u[:, r], zeros], rounded, for the rows [begin, end)."""
    n, width = _u64(columns), stride - columns
    x, ones = np.empty(columns, np.float32), np.empty(width, np.float32)
    for r in range(begin, end):
        at, to = _u64(r * columns), _u64(r * stride)
        if weight_kind == FLOAT32 and kind == BFLOAT16:  # the common case in one pass
            for i in range(n):
                out[to + i] = _bfloat16(_float(_u32(weight[at + i])))
        else:
            _load(x, weight, at, n, weight_kind)
            _store_nearest(out, to, x, n, kind)
        for j in range(width):
            ones[j] = np.float32(u[j, r]) if j < u.shape[0] else np.float32(0.0)
        _store_nearest(out, to + n, ones, _u64(width), kind)


@_jit
def spread_span(padded, kind, stride, columns, s, which, count, begin, end):  # type: ignore[no-untyped-def]
    """padded[t, columns:] = s[t] in the column of the run's direction, 0 in the others."""
    width = _u64(stride - columns)
    for t in range(begin, end):
        at = _u64(t * stride + columns)
        for i in range(width):
            padded[at + i] = 0
        _store_nearest(padded, at + _u64(which[t // count]), s[t : t + 1], 1, kind)


@_jit
def prefill_span(y, columns, s, u, which, bias, bias_stride, count, begin, end):  # type: ignore[no-untyped-def]
    """y[t] = s[t] * u[which] (+ bias), as float32, for the vectors [begin, end)."""
    n = _u64(columns)
    for t in range(begin, end):
        row = t // count
        at, from_u, value = _u64(t * columns), _u64(which[row] * columns), s[t]
        if bias.size:
            from_bias = _u64(row * bias_stride)
            for i in range(n):
                y[at + i] = value * np.float32(u[from_u + i]) + bias[from_bias + i]
        else:
            for i in range(n):
                y[at + i] = value * np.float32(u[from_u + i])
