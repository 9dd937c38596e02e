# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-calls, allow-untyped-decorators
# ruff: noqa: RET505, SIM300  (Triton's branches of constants need their else)
"""What every Triton sweep is made of: Philox calls, signs, and 16-bit floats as integers.

Layout 1 (see `compiled.py`) as vectors of 64 neighbours: lane b of a program makes call b of a tile,
and its output j belongs to columns 64*j + b of each of the tile's rows. So the calls of a tile are made
once, stay in registers, and no lane ever needs another's words: no shared memory, no barrier.

Every vector here is one-dimensional on purpose: a layout that Triton could choose for two dimensions
would make neighbouring lanes repeat each other's calls. bfloat16 is read and rounded as integers, for
then all devices and Triton's interpreter agree on every bit, NaN included.
"""

from __future__ import annotations

import triton
import triton.language as tl

from zoft.system import philox

LANES = tl.constexpr(64)  # calls of a tile, neighbours in memory
ROW = tl.constexpr(256)  # elements that take one bit (or one half) of a tile's words
SIGN_ROWS = tl.constexpr(32)  # rows of a tile whose elements take a bit each
HALF_ROWS = tl.constexpr(2)  # rows of a tile whose elements take sixteen bits each
PURPOSE_U = tl.constexpr(philox.PURPOSE_U << 24)
PURPOSE_V = tl.constexpr(philox.PURPOSE_V << 24)
PURPOSE_ROUNDING = tl.constexpr(philox.PURPOSE_ROUNDING << 24)
_M0, _M1 = tl.constexpr(philox.M0), tl.constexpr(philox.M1)
_W0, _W1 = tl.constexpr(philox.W0), tl.constexpr(philox.W1)
_ROUNDS = tl.constexpr(philox.ROUNDS)


@triton.jit
def philox_calls(c0, c1, seed, step, param, last):
    """The four outputs of the calls (c0, c1, param, last) under the key (seed, step), all uint32.

    One 64-bit product gives both halves in one instruction.
    """
    c2, c3 = tl.cast(param, tl.uint32), tl.cast(last, tl.uint32)
    k0, k1 = tl.cast(seed, tl.uint32), tl.cast(step, tl.uint32)
    for _ in tl.static_range(_ROUNDS):
        p0 = c0.to(tl.uint64) * _M0
        p1 = c2.to(tl.uint64) * _M1
        c0 = (p1 >> 32).to(tl.uint32) ^ c1 ^ k0
        c2 = (p0 >> 32).to(tl.uint32) ^ c3 ^ k1
        c1, c3 = p1.to(tl.uint32), p0.to(tl.uint32)
        k0, k1 = k0 + _W0, k1 + _W1
    return c0, c1, c2, c3


@triton.jit
def tile_words(tile, lane, seed, step, param, last):
    """Output 0..3 of the 64 calls of an int64 tile: four uint32 vectors (64,)."""
    block = tl.cast(tile, tl.int64) * 64
    c0 = block.to(tl.uint32) + lane.to(tl.uint32)  # a multiple of 64 and at most 63: no carry
    return philox_calls(c0, (block >> 32).to(tl.uint32), seed, step, param, last)


@triton.jit
def flipped(x, word, bit):
    """float32 x, negated where `bit` of the uint32 word is set."""
    sign = (word << (31 - bit)) & 0x80000000
    return (tl.cast(x, tl.float32).to(tl.uint32, bitcast=True) ^ sign).to(tl.float32, bitcast=True)


@triton.jit
def half_word(word, half):
    """The lower (0) or upper (1) sixteen bits."""
    return (word >> (16 * half)) & 0xFFFF


@triton.jit
def element_half(element, seed, step, param, last):
    """The sixteen bits of any int64 element numbers: one call each, for runs that cut tiles."""
    word = (element & 255).to(tl.uint32)
    block = (element >> 9) * 64 + (element & 63)
    o0, o1, o2, o3 = philox_calls(
        block.to(tl.uint32), (block >> 32).to(tl.uint32), seed, step, param, last
    )
    low, high = tl.where(word < 64, o0, o1), tl.where(word < 192, o2, o3)
    return half_word(tl.where(word < 128, low, high), ((element >> 8) & 1).to(tl.uint32))


@triton.jit
def load_float(pointer, mask):
    """Stored weights as float32."""
    return widened(tl.load(pointer, mask=mask))


@triton.jit
def widened(raw):
    """Any of the three types as float32."""
    if raw.dtype == tl.bfloat16:
        wide = raw.to(tl.uint16, bitcast=True).to(tl.uint32) << 16
        return wide.to(tl.float32, bitcast=True)
    else:
        return raw.to(tl.float32)


@triton.jit
def nearest(x, DTYPE: tl.constexpr):
    """float32 x in another type, ties to even."""
    if DTYPE == tl.bfloat16:
        u = x.to(tl.uint32, bitcast=True)
        rounded = (u + 0x7FFF + ((u >> 16) & 1)) >> 16
        rounded = tl.where((u & 0x7FFFFFFF) > 0x7F800000, 0x7FC0, rounded)
        return rounded.to(tl.uint16).to(tl.bfloat16, bitcast=True)
    else:
        return x.to(DTYPE)


@triton.jit
def store_nearest(pointer, x, mask):
    """float32 x, rounded to nearest even."""
    tl.store(pointer, nearest(x, pointer.dtype.element_ty), mask=mask)


@triton.jit
def store_stochastic(pointer, x, half, mask):
    """float32 x with 16 (bfloat16) or 13 (float16) random bits below the mantissa, truncated."""
    dtype: tl.constexpr = pointer.dtype.element_ty
    u = x.to(tl.uint32, bitcast=True)
    a = u & 0x7FFFFFFF
    if dtype == tl.bfloat16:
        rounded = (u + tl.where(a >= 0x7F800000, 0, half)) >> 16  # inf and NaN pass
    else:
        r = half & 0x1FFF
        rounded = (a - 0x38000000 + r) >> 13
        # Subnormal: a grid of 2**-24. Below 2**11 of its units nothing here is rounded.
        near = tl.where(a < 0x38800000, a, 0).to(tl.float32, bitcast=True)
        units = near * 16777216.0 + r.to(tl.int32).to(tl.float32) * 0.0001220703125
        rounded = tl.where(a < 0x38800000, units.to(tl.int32).to(tl.uint32), rounded)
        rounded = tl.minimum(rounded, 0x7C00)
        rounded = tl.where(a == 0x7F800000, 0x7C00, rounded)
        rounded = tl.where(a > 0x7F800000, 0x7E00, rounded)
        rounded = rounded | ((u >> 16) & 0x8000)
    tl.store(pointer, rounded.to(tl.uint16).to(dtype, bitcast=True), mask=mask)
