"""The update loop: every weight is read, moved by an exact sum of directions, and written, once."""

from __future__ import annotations

import numpy as np
from numba import njit

from zoft.engine.kernels.cpu.probe import (
    FLOAT32,
    ROW,
    _bits,
    _float,
    _load,
    _store_nearest,
    _store_stochastic,
    philox_words,
)
from zoft.system.philox import PURPOSE_DENSE, PURPOSE_ROUNDING

_u32, _u64 = np.uint32, np.uint64
CHUNK = 4 * ROW  # columns of two rows at a time: sums that stay in the nearest cache
_jit = njit(nogil=True, cache=True, error_model="numpy")
# Contraction and order are free in sums of integers: they are exact.
_jit_exact = njit(nogil=True, cache=True, error_model="numpy", fastmath={"reassoc", "contract"})


@_jit
def _add_terms(  # type: ignore[no-untyped-def]
    g, total, words, n, first, last, column, count, part, gaussian, table, unit
):
    """g[:count] = unit * sum of n_i z_i over the terms [first, last). Exact, so in any order."""
    if gaussian:
        shift = _u32(16 * part)
        for i in range(count):
            total[i] = 0.0
        for t in range(first, last):
            for i in range(count):
                entry = table[(words[t, column + i] >> shift) & _u32(0xFFFF)]
                total[i] += np.float64(n[t]) * np.float64(entry)
        for i in range(count):
            g[i] = np.float32(total[i]) * unit
    else:
        # Sum n_i minus 2 n_i where the sign bit is set: a test and a masked subtraction per term.
        bit, whole = _u32(_u32(1) << _u32(part)), np.float32(0.0)
        for t in range(first, last):
            whole += n[t]
        for i in range(count):
            g[i] = whole
        t = first
        while t + 4 <= last:  # four at a time: g is loaded and stored a quarter as often
            two = np.float32(2.0)
            a, b, c, d = two * n[t], two * n[t + 1], two * n[t + 2], two * n[t + 3]
            for i in range(count):
                at, x = column + i, g[i]
                x = x - a if _u32(words[t, at] & bit) != _u32(0) else x
                x = x - b if _u32(words[t + 1, at] & bit) != _u32(0) else x
                x = x - c if _u32(words[t + 2, at] & bit) != _u32(0) else x
                g[i] = x - d if _u32(words[t + 3, at] & bit) != _u32(0) else x
            t += 4
        while t < last:
            a = np.float32(2.0) * n[t]
            for i in range(count):
                g[i] = g[i] - a if _u32(words[t, column + i] & bit) != _u32(0) else g[i]
            t += 1
        for i in range(count):
            g[i] *= unit


@_jit_exact
def _add_outer(g, u, v, first, last, r, column, count, unit):  # type: ignore[no-untyped-def]
    """g[:count] = unit * sum of u[t, r] * v[t, column + i] over the terms [first, last).

    u (terms, R) holds the integers n_t times signs: every partial sum is exact, so any order does.
    """
    for i in range(count):
        g[i] = np.float32(0.0)
    t = first
    while t + 4 <= last:  # four at a time: g is loaded and stored a quarter as often
        a, b, c, d = u[t, r], u[t + 1, r], u[t + 2, r], u[t + 3, r]
        for i in range(count):
            g[i] += (
                (a * np.float32(v[t, column + i]) + b * np.float32(v[t + 1, column + i]))
                + (c * np.float32(v[t + 2, column + i]) + d * np.float32(v[t + 3, column + i]))
            )  # fmt: skip
        t += 4
    while t < last:
        a = u[t, r]
        for i in range(count):
            g[i] += a * np.float32(v[t, column + i])
        t += 1
    for i in range(count):
        g[i] *= unit


@_jit_exact
def _class_sum(total, factors, terms, n, v, column, count):  # type: ignore[no-untyped-def]
    """total[:count] = sum of factors[t] * v[terms[t], column:] over the first n."""
    for i in range(count):
        total[i] = np.float32(0.0)
    t = 0
    while t + 4 <= n:
        a, b, c, d = factors[t], factors[t + 1], factors[t + 2], factors[t + 3]
        ta, tb, tc, td = terms[t], terms[t + 1], terms[t + 2], terms[t + 3]
        for i in range(count):
            total[i] += (
                (a * np.float32(v[ta, column + i]) + b * np.float32(v[tb, column + i]))
                + (c * np.float32(v[tc, column + i]) + d * np.float32(v[td, column + i]))
            )  # fmt: skip
        t += 4
    while t < n:
        a, ta = factors[t], terms[t]
        for i in range(count):
            total[i] += a * np.float32(v[ta, column + i])
        t += 1


@_jit
def add_outer_rows(  # type: ignore[no-untyped-def]
    weight, rows, columns, u, v, unit, decay, begin, end
):
    """weight = weight * decay + unit * u v, float32, for the rows [begin, end) of one matrix after the
    other, each of `rows` rows.

    u (all rows, terms) float32, integers n_t times signs; v (terms, matrices * C) int8. Two rows of a
    matrix at a time: their terms have equal or opposite signs, and with E and D the sums of these, one
    row adds E + D and the other E - D: half the products, exact as every sum of them.
    """
    count_terms = u.shape[1]
    equal, differ = np.empty(CHUNK, np.float32), np.empty(CHUNK, np.float32)
    a, b = np.empty(count_terms, np.float32), np.empty(count_terms, np.float32)
    ta, tb = np.empty(count_terms, np.uint64), np.empty(count_terms, np.uint64)
    r = begin
    while r < end:
        alone = r + 1 == end or (r + 1) % rows == 0
        own = r // rows * columns
        na = nb = 0
        for t in range(count_terms):
            if alone or u[r, t] == u[r + 1, t]:
                a[na], ta[na] = u[r, t], t
                na += 1
            else:
                b[nb], tb[nb] = u[r, t], t
                nb += 1
        for c in range(0, columns, CHUNK):
            count = _u64(min(CHUNK, columns - c))
            _class_sum(equal, a, ta, na, v, _u64(own + c), count)
            _class_sum(differ, b, tb, nb, v, _u64(own + c), count)
            at = _u64(r * columns + c)
            below = at + _u64(columns)
            for i in range(count):
                g = (equal[i] + differ[i]) * unit
                weight[at + i] = weight[at + i] * decay + g
            if not alone:
                for i in range(count):
                    g = (equal[i] - differ[i]) * unit
                    weight[below + i] = weight[below + i] * decay + g
        r += 1 if alone else 2


SUM, STORED, WINDOW, AMSGRAD = 0, 1, 2, 3


@_jit
def update_span(  # type: ignore[no-untyped-def]
    mode, weight, kind, exp_avg, exp_avg_sq, max_exp_avg_sq, begin, end, seed, param,
    steps, ks, n, starts, units, gaussian, table,
    decay, beta1, beta2, rest1, rest2, lr, correction, eps, rounding_seed, rounding_step, u, v_signs,
    rows, columns,
):  # fmt: skip
    """Update the flat elements [begin, end) in place; `starts` and `units` cut the terms by step.

    u (terms, E * rows) float32 and v_signs (terms, E * columns) int8 are the factors of the rank-1 terms
    of E matrices (u times n); with dense terms they are empty, and `columns` is 0.
    """
    words = np.empty((1 if columns else max(len(n), 1), ROW), np.uint32)
    noise = np.empty(ROW, np.uint32)
    x, g, total = np.empty(ROW, np.float32), np.empty(ROW, np.float32), np.empty(ROW, np.float64)
    m, v = np.empty(ROW, np.float32), np.empty(ROW, np.float32)
    tile_rows = 2 if gaussian else 32
    last_tile = last_noise = np.int64(-1)
    element = begin
    while element < end:
        row, column = element // ROW, _u64(element % ROW)
        size = min(ROW - element % ROW, end - element)
        r = c = np.int64(0)
        if columns:
            r, c = element // columns, element % columns
            size = min(size, columns - c)
            c += r // rows * columns
        count, at = _u64(size), _u64(element)
        tile, part = row // tile_rows, row % tile_rows
        if tile != last_tile and not columns:
            for t in range(len(n)):
                philox_words(words[t], seed, steps[t], param, PURPOSE_DENSE << 24 | ks[t], tile)
            last_tile = tile
        if mode == SUM and kind == FLOAT32 and len(n) == 1 and not gaussian and not columns:
            # The common case in one pass: 0.2 ns per element instead of 0.4.
            length, shift = _bits(n[0] * units[0]), _u32(31 - part)
            for i in range(count):
                sign = (words[0, column + i] << shift) & _u32(0x80000000)
                moved = _float(_u32(weight[at + i])) * decay + _float(length ^ sign)
                weight[at + i] = _bits(moved)
            element += np.int64(count)
            continue
        _load(x, weight, at, count, kind)
        if mode == SUM:
            if columns:
                _add_outer(g, u, v_signs, 0, len(n), r, _u64(c), count, units[0])
            else:
                _add_terms(
                    g, total, words, n, 0, len(n), column, count, part, gaussian, table, units[0]
                )
            for i in range(count):
                x[i] = x[i] * decay + g[i]
        else:
            if mode == WINDOW:
                m[:], v[:] = np.float32(0.0), np.float32(0.0)
            else:
                for i in range(count):
                    m[i], v[i] = exp_avg[at + i], exp_avg_sq[at + i]
            for s in range(len(units)):
                if columns:
                    _add_outer(g, u, v_signs, starts[s], starts[s + 1], r, _u64(c), count, units[s])
                else:
                    _add_terms(
                        g, total, words, n, starts[s], starts[s + 1], column, count, part,
                        gaussian, table, units[s],
                    )  # fmt: skip
                for i in range(count):
                    m[i] = beta1 * m[i] + rest1 * g[i]
                    averaged = g[i] if mode == AMSGRAD else m[i]
                    v[i] = beta2 * v[i] + rest2 * (averaged * averaged)
            if mode != WINDOW:
                for i in range(count):
                    exp_avg[at + i], exp_avg_sq[at + i] = m[i], v[i]
            if mode == AMSGRAD:
                for i in range(count):
                    largest = max_exp_avg_sq[at + i]
                    v[i] = v[i] if v[i] > largest else largest
                    max_exp_avg_sq[at + i] = v[i]
            for i in range(count):
                x[i] = x[i] * decay - (lr * m[i]) / (np.sqrt(v[i] / correction) + eps)
        if kind == FLOAT32:
            _store_nearest(weight, at, x, count, kind)
        else:
            if row // 2 != last_noise:
                last = PURPOSE_ROUNDING << 24
                philox_words(noise, rounding_seed, rounding_step, param, last, row // 2)
                last_noise = row // 2
            _store_stochastic(weight, at, x, count, kind, noise, column, row % 2)
        element += np.int64(count)
