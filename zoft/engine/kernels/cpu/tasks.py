"""The sweeps inside a forward pass, as tasks for torch's threads (see `openmp.py`).

Each factory compiles one task for the types of the stored bits; numba caches them on disk. A task reads
its arguments, int64 numbers in the order that `cpu.py` writes them, and runs a span for every piece it
claims. Floats travel as the bits of a float64.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np
from numba import carray, cfunc, types

from zoft.engine.kernels.cpu.openmp import FIRST, claim, pointer
from zoft.engine.kernels.cpu.probe import perturb_span
from zoft.engine.kernels.cpu.rank1 import prefill_span, project_span, widen_span

_task = cfunc(types.void(types.voidptr), cache=True, nopython=True)


@cache
def perturb_task(out_type: Any, weight_type: Any) -> Any:
    """piece, n, out, its kind, weight, its kind, offset, seed, step, param, k, scale, table or 0."""

    @_task
    def task(data):  # type: ignore[no-untyped-def]
        a = carray(data, (FIRST + 13,), np.int64)
        scale = np.float32(carray(data, (FIRST + 13,), np.float64)[FIRST + 11])
        piece, n = a[FIRST], a[FIRST + 1]
        out = carray(pointer(a[FIRST + 2]), (n,), out_type)
        weight = carray(pointer(a[FIRST + 4]), (n,), weight_type)
        gaussian = a[FIRST + 12] != 0
        table = carray(pointer(a[FIRST + 12]), (65536 if gaussian else 0,), np.float32)
        while True:
            number = claim(data)
            if number >= a[1]:
                break
            begin = number * piece
            perturb_span(
                out, a[FIRST + 3], weight, a[FIRST + 5], begin, min(begin + piece, n),
                a[FIRST + 6], a[FIRST + 7], a[FIRST + 8], a[FIRST + 9], a[FIRST + 10], scale,
                gaussian, table,
            )  # fmt: skip

    return task


@cache
def project_task(bits_type: Any) -> Any:
    """piece, s, members, x, its kind, vectors, columns, v, n, which, scales, runs, padded, stride."""

    @_task
    def task(data):  # type: ignore[no-untyped-def]
        a = carray(data, (FIRST + 14,), np.int64)
        piece, members, vectors = a[FIRST], a[FIRST + 2], a[FIRST + 5]
        columns, n, runs, stride = a[FIRST + 6], a[FIRST + 8], a[FIRST + 11], a[FIRST + 13]
        s = carray(pointer(a[FIRST + 1]), (members, vectors), np.float32)
        x = carray(pointer(a[FIRST + 3]), (vectors * columns,), bits_type)
        v = carray(pointer(a[FIRST + 7]), (members, n * columns), np.int8)
        which = carray(pointer(a[FIRST + 9]), (runs,), np.int64)
        scales = carray(pointer(a[FIRST + 10]), (runs,), np.float32)
        padded = carray(pointer(a[FIRST + 12]), (vectors * stride,), bits_type)
        while True:
            begin = claim(data) * piece
            if begin >= vectors:
                break
            project_span(
                s, x, a[FIRST + 4], columns, v, which, scales, vectors // runs, padded, stride,
                begin, min(begin + piece, vectors),
            )  # fmt: skip

    return task


@cache
def widen_task(out_type: Any, weight_type: Any) -> Any:
    """piece, rows, out, its kind, weight, its kind, columns, stride, u, n."""

    @_task
    def task(data):  # type: ignore[no-untyped-def]
        a = carray(data, (FIRST + 10,), np.int64)
        piece, rows, columns, stride = a[FIRST], a[FIRST + 1], a[FIRST + 6], a[FIRST + 7]
        out = carray(pointer(a[FIRST + 2]), (rows * stride,), out_type)
        weight = carray(pointer(a[FIRST + 4]), (rows * columns,), weight_type)
        u = carray(pointer(a[FIRST + 8]), (a[FIRST + 9], rows), np.int8)
        while True:
            begin = claim(data) * piece
            if begin >= rows:
                break
            widen_span(
                out, a[FIRST + 3], weight, a[FIRST + 5], columns, stride, u,
                begin, min(begin + piece, rows),
            )  # fmt: skip

    return task


@cache
def prefill_task() -> Any:
    """piece, y, vectors, columns, s, u, n, which, runs, bias, its stride, its size."""

    @_task
    def task(data):  # type: ignore[no-untyped-def]
        a = carray(data, (FIRST + 12,), np.int64)
        piece, vectors, columns, runs = a[FIRST], a[FIRST + 2], a[FIRST + 3], a[FIRST + 8]
        y = carray(pointer(a[FIRST + 1]), (vectors * columns,), np.float32)
        s = carray(pointer(a[FIRST + 4]), (vectors,), np.float32)
        u = carray(pointer(a[FIRST + 5]), (a[FIRST + 6] * columns,), np.int8)
        which = carray(pointer(a[FIRST + 7]), (runs,), np.int64)
        bias = carray(pointer(a[FIRST + 9]), (a[FIRST + 11],), np.float32)
        while True:
            begin = claim(data) * piece
            if begin >= vectors:
                break
            prefill_span(
                y, columns, s, u, which, bias, a[FIRST + 10], vectors // runs,
                begin, min(begin + piece, vectors),
            )  # fmt: skip

    return task
