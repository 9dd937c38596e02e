"""Sweeps on torch's own OpenMP threads.

Between two matrix products torch's idle threads spin on their cores, waiting for the next one: a pool
of our own would wait for them (a probe's sweeps took 54 to 84 ms on two such threads, 44 ms on one).
So the work goes to the threads that spin: a compiled task is handed to GOMP_parallel of the very
libgomp that torch has loaded. Where there is none (another OpenMP, another platform), `run` says so.

A task is a numba cfunc of one pointer, to int64 numbers: [next piece, pieces, arguments ...]. Every
thread claims pieces until none is left.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from llvmlite import ir
from numba import types
from numba.extending import intrinsic

FIRST = 2  # where a task's own arguments start


@intrinsic  # type: ignore[untyped-decorator]
def claim(_typing: Any, _data_type: Any) -> Any:
    """Atomically take the next piece: returns data[0] and adds one to it."""

    def generate(_context: Any, builder: Any, _signature: Any, args: Any) -> Any:
        counter = builder.bitcast(args[0], ir.IntType(64).as_pointer())
        return builder.atomic_rmw("add", counter, ir.Constant(ir.IntType(64), 1), "monotonic")

    return types.int64(types.voidptr), generate


@intrinsic  # type: ignore[untyped-decorator]
def pointer(_typing: Any, _address_type: Any) -> Any:
    """The address as a pointer, for `numba.carray`."""

    def generate(_context: Any, builder: Any, _signature: Any, args: Any) -> Any:
        return builder.inttoptr(args[0], ir.IntType(8).as_pointer())

    return types.voidptr(types.int64), generate


def run(task: Any, pieces: int, threads: int, arguments: Sequence[int]) -> bool:
    """Run `task` over all pieces on `threads` threads and wait; False if there is no libgomp."""
    parallel = _parallel()
    if parallel is None:
        return False
    data = np.array([0, pieces, *arguments], np.int64)
    parallel(task.address, data.ctypes.data, min(threads, pieces), 0)
    return True


@cache
def _parallel() -> Any:
    """GOMP_parallel of the libgomp in this process; None unless there is exactly one."""
    try:
        lines = Path("/proc/self/maps").read_text(encoding="utf-8").splitlines()
    except OSError:
        return None
    found = {line.split()[-1] for line in lines if "libgomp" in line}
    if len(found) != 1:
        return None
    parallel = ctypes.CDLL(found.pop()).GOMP_parallel
    parallel.argtypes = [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_uint, ctypes.c_uint]
    parallel.restype = None
    return parallel
