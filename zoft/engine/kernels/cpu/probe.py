"""The loops of the CPU sweeps: numba over arrays of bits, compiled once and cached on disk.

Layout 1. The flat parameter is cut into rows of 256 elements. Rademacher: 32 rows are a tile, a tile
takes 64 Philox calls, and element l*256 + 64*j + b takes bit l of output j of call b (set: -1).
Gaussian and rounding bits: 2 rows are a tile of 64 calls, and element h*256 + 64*j + b takes the
h-th 16 bits of output j of call b. Neighbours in memory are neighbours in the 256 words, so every
inner loop below vectorises. Their indices are unsigned: a signed one might be negative for all numba
knows, and its wrap-around keeps a loop scalar; slices that start at 0 vectorise too, but cost three
times as much in reference counts (both measured).

Numba contracts nothing into FMA and divides and takes roots as IEEE says, unless asked: don't ask.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from llvmlite import ir
from numba import njit, types
from numba.extending import intrinsic

from zoft.system.philox import M0, M1, PURPOSE_DENSE, ROUNDS, W0, W1

ROW = 256
FLOAT32, BFLOAT16, FLOAT16 = 0, 1, 2  # how 16-bit storage is read and written

_u32, _u64 = np.uint32, np.uint64
_jit = njit(nogil=True, cache=True, error_model="numpy")


@intrinsic  # type: ignore[untyped-decorator]
def _float(_typing: Any, _bits_type: Any) -> Any:  # the float32 with these 32 bits
    def generate(_context: Any, builder: Any, _signature: Any, args: Any) -> Any:
        return builder.bitcast(args[0], ir.FloatType())

    return types.float32(types.uint32), generate


@intrinsic  # type: ignore[untyped-decorator]
def _bits(_typing: Any, _float_type: Any) -> Any:  # the 32 bits of a float32
    def generate(_context: Any, builder: Any, _signature: Any, args: Any) -> Any:
        return builder.bitcast(args[0], ir.IntType(32))

    return types.uint32(types.float32), generate


@_jit
def philox_words(words, seed, step, param, last, tile):  # type: ignore[no-untyped-def]
    """Fill words[64*j + b] with output j of call b of a tile: 64 calls, 256 words."""
    low = _u64(0xFFFFFFFF)
    for b in range(64):
        block = _u64(tile) * _u64(64) + _u64(b)
        c0, c1, c2, c3 = block & low, block >> _u64(32), _u64(param), _u64(last)
        k0, k1 = _u64(seed), _u64(step)
        for _ in range(ROUNDS):
            p0, p1 = _u64(M0) * c0, _u64(M1) * c2
            c0, c1 = (p1 >> _u64(32)) ^ c1 ^ k0, p1 & low
            c2, c3 = (p0 >> _u64(32)) ^ c3 ^ k1, p0 & low
            k0, k1 = (k0 + _u64(W0)) & low, (k1 + _u64(W1)) & low
        words[b], words[64 + b] = _u32(c0), _u32(c1)
        words[128 + b], words[192 + b] = _u32(c2), _u32(c3)


@_jit
def _load(x, source, at, n, kind):  # type: ignore[no-untyped-def]
    """x[:n] as float32 from the bits source[at:] (uint32: float32; uint16: bfloat16 or float16)."""
    if kind == FLOAT32:
        for i in range(n):
            x[i] = _float(_u32(source[at + i]))
    elif kind == BFLOAT16:
        for i in range(n):
            x[i] = _float(_u32(source[at + i]) << _u32(16))
    else:
        for i in range(n):
            h = _u32(source[at + i])
            shifted = (h & _u32(0x7FFF)) << _u32(13)
            bits = _bits(_float(shifted) * np.float32(2.0**112))  # moves the exponent's bias
            if shifted >= _u32(0x0F800000):  # inf and NaN
                bits |= _u32(0x7F800000)
            x[i] = _float(bits | (h & _u32(0x8000)) << _u32(16))


@_jit
def _bfloat16(value):  # type: ignore[no-untyped-def]
    """The bits of the nearest bfloat16, ties to even."""
    u = _bits(value)
    rounded = (u + _u32(0x7FFF) + ((u >> _u32(16)) & _u32(1))) >> _u32(16)
    return rounded if u & _u32(0x7FFFFFFF) <= _u32(0x7F800000) else _u32(0x7FC0)


@_jit
def _store_nearest(out, at, x, n, kind):  # type: ignore[no-untyped-def]
    """out[at:] = float32 x[:n], rounded to nearest even."""
    if kind == FLOAT32:
        for i in range(n):
            out[at + i] = _bits(x[i])
    elif kind == BFLOAT16:
        for i in range(n):
            out[at + i] = _bfloat16(x[i])
    else:
        for i in range(n):
            u = _bits(x[i])
            a = u & _u32(0x7FFFFFFF)
            r = (a - _u32(0x38000000) + _u32(0xFFF) + ((a >> _u32(13)) & _u32(1))) >> _u32(13)
            if a < _u32(0x38800000):  # subnormal: 0.5 has the ulp of the smallest half
                r = _bits(_float(a) + np.float32(0.5)) - _u32(0x3F000000)
            if a >= _u32(0x47800000):
                r = _u32(0x7C00) if a <= _u32(0x7F800000) else _u32(0x7E00)
            out[at + i] = r | (u >> _u32(16)) & _u32(0x8000)


@_jit
def _store_stochastic(out, at, x, n, kind, words, column, half):  # type: ignore[no-untyped-def]
    """out[at:] = float32 x[:n] with 16 (bfloat16) or 13 (float16) random bits below the mantissa."""
    shift = _u32(16 * half)
    if kind == BFLOAT16:
        for i in range(n):
            u = _bits(x[i])
            r = (words[column + i] >> shift) & _u32(0xFFFF)
            if u & _u32(0x7F800000) == _u32(0x7F800000):
                r = _u32(0)  # inf and NaN pass
            out[at + i] = (u + r) >> _u32(16)
    else:
        for i in range(n):
            u = _bits(x[i])
            a = u & _u32(0x7FFFFFFF)
            r = (words[column + i] >> shift) & _u32(0x1FFF)
            h = (a - _u32(0x38000000) + r) >> _u32(13)
            if a < _u32(0x38800000):  # subnormal: a grid of 2**-24
                units = _float(a) * np.float32(2.0**24) + np.float32(r) * np.float32(2.0**-13)
                h = _u32(np.int32(units))
            if h > _u32(0x7C00):
                h = _u32(0x7C00)
            if a >= _u32(0x7F800000):
                h = _u32(0x7C00) if a == _u32(0x7F800000) else _u32(0x7E00)
            out[at + i] = h | (u >> _u32(16)) & _u32(0x8000)


@_jit
def _perturb(  # type: ignore[no-untyped-def]
    out, out_kind, out_start, weight, kind, start, first, n,
    seed, step, param, k, scale, gaussian, table, words, x,
):  # fmt: skip
    """out[out_start:][:n] = weight[start:][:n] + scale * z of the elements numbered from `first`."""
    tile_rows = 2 if gaussian else 32
    last_tile = np.int64(-1)
    scale_bits = _bits(scale)
    done = np.int64(0)
    while done < n:
        element = first + done
        row, column = element // ROW, _u64(element % ROW)
        tile, part = row // tile_rows, row % tile_rows
        if tile != last_tile:
            philox_words(words, seed, step, param, PURPOSE_DENSE << 24 | k, tile)
            last_tile = tile
        count = _u64(min(ROW - element % ROW, n - done))
        at, to = _u64(start + done), _u64(out_start + done)
        if kind == FLOAT32 and out_kind != FLOAT16 and not gaussian:
            # The common cases in one pass: 0.15 ns per element instead of 0.32.
            shift = _u32(31 - part)
            if out_kind == BFLOAT16:
                for i in range(count):
                    sign = (words[column + i] << shift) & _u32(0x80000000)
                    out[to + i] = _bfloat16(
                        _float(_u32(weight[at + i])) + _float(scale_bits ^ sign)
                    )
            else:
                for i in range(count):
                    sign = (words[column + i] << shift) & _u32(0x80000000)
                    out[to + i] = _bits(_float(_u32(weight[at + i])) + _float(scale_bits ^ sign))
            done += np.int64(count)
            continue
        _load(x, weight, at, count, kind)
        if gaussian:
            shift = _u32(16 * part)
            for i in range(count):
                x[i] += scale * table[(words[column + i] >> shift) & _u32(0xFFFF)]
        else:
            shift = _u32(31 - part)
            for i in range(count):
                sign = (words[column + i] << shift) & _u32(0x80000000)
                x[i] += _float(scale_bits ^ sign)
        _store_nearest(out, to, x, count, out_kind)
        done += np.int64(count)


@_jit
def perturb_span(  # type: ignore[no-untyped-def]
    out, out_kind, weight, kind, begin, end, offset, seed, step, param, k, scale, gaussian, table
):
    """The flat elements [begin, end) of a parameter whose stored element 0 has number `offset`."""
    words, x = np.empty(ROW, np.uint32), np.empty(ROW, np.float32)
    _perturb(
        out, out_kind, begin, weight, kind, begin, offset + begin, end - begin,
        seed, step, param, k, scale, gaussian, table, words, x,
    )  # fmt: skip


@_jit
def perturb_pair_span(  # type: ignore[no-untyped-def]
    plus, minus, out_kind, weight, kind, begin, end, offset, seed, step, param, k, scale, gaussian,
    table,
):  # fmt: skip
    """Both signs, row by row: the weights and the random words are read from the cache once more."""
    words, x = np.empty(ROW, np.uint32), np.empty(ROW, np.float32)
    tile = np.int64((2 if gaussian else 32) * ROW)
    at = begin
    while at < end:
        n = min(tile - (offset + at) % tile, end - at)
        for sign in range(2):
            _perturb(
                plus if sign == 0 else minus, out_kind, at, weight, kind, at, offset + at, n,
                seed, step, param, k, scale if sign == 0 else -scale, gaussian, table, words, x,
            )  # fmt: skip
        at += n


@_jit
def perturb_rows_span(  # type: ignore[no-untyped-def]
    out, out_kind, weight, kind, rows, columns, begin, end,
    seed, step, param, k, scale, gaussian, table,
):  # fmt: skip
    """out[i] = weight[rows[i]] + scale * z for i in [begin, end); every row has `columns` elements."""
    words, x = np.empty(ROW, np.uint32), np.empty(ROW, np.float32)
    for i in range(begin, end):
        start = rows[i] * columns
        _perturb(
            out, out_kind, i * columns, weight, kind, start, start, columns,
            seed, step, param, k, scale, gaussian, table, words, x,
        )  # fmt: skip
