"""The kernels on a CPU, bit-equal to `reference.py`: tensors and threads around the compiled loops.

Updates run on Python threads (the loops hold no GIL), sweeps inside a forward pass on torch's own.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from zoft.engine.kernels.cpu import openmp
from zoft.engine.kernels.cpu.probe import (
    BFLOAT16,
    FLOAT16,
    FLOAT32,
    ROW,
    perturb_pair_span,
    perturb_rows_span,
    perturb_span,
)
from zoft.engine.kernels.cpu.rank1 import (
    perturb_each_span,
    prefill_span,
    project_span,
    signs_of_table,
    signs_of_terms,
    spread_span,
    widen_span,
)
from zoft.engine.kernels.cpu.tasks import perturb_task, prefill_task, project_task, widen_task
from zoft.engine.kernels.cpu.update import (
    AMSGRAD,
    STORED,
    SUM,
    WINDOW,
    add_outer_rows,
    update_span,
)
from zoft.engine.kernels.numerics import gaussian as normal
from zoft.engine.kernels.numerics.exact_sum import DirectionSum, Rounding
from zoft.recipe.sections.optimizers.rule import AdamConstants
from zoft.system.philox import PURPOSE_DENSE, PURPOSE_U, PURPOSE_V

MIN_PER_THREAD = 1 << 16  # elements; below it a thread costs more than it saves
MIN_PER_TORCH_THREAD = 1 << 15  # torch's threads are awake


@cache
def _pool(threads: int) -> ThreadPoolExecutor:
    return ThreadPoolExecutor(threads, thread_name_prefix="zoft-kernel")


def _spread(span: Any, n: int, align: int, least: int) -> None:
    """Call span(begin, end) over [0, n) from up to torch.get_num_threads() threads.

    Pieces are cut at multiples of `align` and have at least `least` elements.
    """
    threads = min(torch.get_num_threads(), max(1, n // max(least, align)))
    if threads == 1:
        span(0, n)
        return
    pieces = -(-n // align)
    cuts = [min(n, align * (pieces * i // threads)) for i in range(threads + 1)]
    # The caller works too, and waits for every piece even if its own is interrupted.
    others = [_pool(threads - 1).submit(span, *cuts[i : i + 2]) for i in range(1, threads)]
    try:
        span(cuts[0], cuts[1])
    finally:
        for other in others:
            other.result()


def _on_torch_threads(
    factory: Callable[..., Any], stored: Sequence[torch.Tensor], n: int, align: int, least: int,
    *arguments: int,
) -> bool:  # fmt: skip
    """Run a task over n units on torch's threads if that pays; False: not done.

    `factory` compiles it for the types of the bits of `stored`. Pieces are whole `align` units, at
    least `least` each, several for a thread, since the others may be late.
    """
    threads = torch.get_num_threads()
    pieces = min(n // max(least, align), 4 * threads)
    if threads == 1 or pieces < 2:
        return False
    piece = -(-n // (pieces * align)) * align
    task = factory(*(_bits_type(x.dtype) for x in stored))
    return openmp.run(task, -(-n // piece), threads, (piece, *arguments))


def _at(array: npt.NDArray[Any]) -> int:
    return array.ctypes.data if array.size else 0


def _pointer(tensor: torch.Tensor) -> int:
    """The address of the elements: a loop that is handed nothing else takes them in memory's order."""
    assert tensor.is_contiguous(), "a kernel reads contiguous tensors only"
    return tensor.data_ptr()


def _float_bits(x: float) -> int:
    return int(np.float64(x).view(np.int64))


KINDS = {torch.float32: FLOAT32, torch.bfloat16: BFLOAT16, torch.float16: FLOAT16}


def _kind(tensor: torch.Tensor) -> int:
    """How the tensor's bits are read."""
    if tensor.dtype not in KINDS:
        raise TypeError(f"weights of {tensor.dtype} cannot be tuned")
    return KINDS[tensor.dtype]


def _bits_type(dtype: torch.dtype) -> Any:
    return np.uint32 if dtype == torch.float32 else np.uint16


def _stored(tensor: torch.Tensor) -> tuple[npt.NDArray[Any], int]:
    """The tensor's bits as a flat numpy view, and how to read them."""
    kind, flat = _kind(tensor), tensor.detach().view(-1)
    if kind == FLOAT32:
        return flat.numpy().view(np.uint32), kind
    return flat.view(torch.int16).numpy().view(np.uint16), kind


def perturb(
    out: torch.Tensor, weight: torch.Tensor, *, offset: int = 0, seed: int, step: int,
    param: int, k: int, scale: float, gaussian: bool,
) -> None:  # fmt: skip
    """out = weight + scale * z in float32, rounded once to out's dtype.

    Both are contiguous and of one size; `weight` may be a slice whose first element has number
    `offset` in the whole parameter.
    """
    table = _table(gaussian)
    address, n = (offset, seed, step, param, k), out.numel()
    if _on_torch_threads(
        perturb_task, (out, weight), n, 32 * ROW, MIN_PER_TORCH_THREAD,
        n, _pointer(out), _kind(out), _pointer(weight), _kind(weight), *address,
        _float_bits(scale), _at(table),
    ):  # fmt: skip
        return
    o, out_kind = _stored(out)
    w, kind = _stored(weight)
    perturb_span(o, out_kind, w, kind, 0, n, *address, np.float32(scale), gaussian, table)


def perturb_pair(
    plus: torch.Tensor, minus: torch.Tensor, weight: torch.Tensor, *, offset: int = 0, seed: int,
    step: int, param: int, k: int, scale: float, gaussian: bool,
) -> None:  # fmt: skip
    """plus = weight + scale * z and minus = weight - scale * z, each as `perturb` rounds it."""
    p, out_kind = _stored(plus)
    m, _ = _stored(minus)
    w, kind = _stored(weight)
    z = (offset, seed, step, param, k, np.float32(scale), gaussian, _table(gaussian))
    perturb_pair_span(p, m, out_kind, w, kind, 0, p.size, *z)


def perturb_rows(
    out: torch.Tensor, weight: torch.Tensor, rows: torch.Tensor, *, seed: int, step: int,
    param: int, k: int, scale: float, gaussian: bool,
) -> None:  # fmt: skip
    """out[at + i] = weight[rows[i]] + scale * z; weight (R, C), rows (n,) int64, out (n, C)."""
    o, out_kind = _stored(out)
    w, kind = _stored(weight)
    index, columns = rows.numpy(), weight.shape[1]
    if index.size and not 0 <= index.min() <= index.max() < weight.shape[0]:
        raise IndexError(f"row {index.max()} of a matrix of {weight.shape[0]}")  # numba checks none
    z = (seed, step, param, k, np.float32(scale), gaussian, _table(gaussian))
    perturb_rows_span(o, out_kind, w, kind, index, columns, 0, index.size, *z)


def perturb_each(
    out: torch.Tensor, weight: torch.Tensor, *, seed: int, step: int, param: int,
    ks: torch.Tensor, scales: torch.Tensor,
) -> None:  # fmt: skip
    """out[i] = weight + scales[i] * z(ks[i]), signs; weight (C,), out (n, C) float32."""
    o, _ = _stored(out)
    w, kind = _stored(weight)
    drawn = np.empty(w.size, np.int8)
    perturb_each_span(
        o, w, kind, seed, step, param, PURPOSE_DENSE, ks.numpy(), scales.numpy(), drawn,
        0, len(ks),
    )  # fmt: skip


def signs(
    out: torch.Tensor, table: torch.Tensor, *, seed: int, step: int, ks: torch.Tensor
) -> None:
    """The factors of a step's rank-1 directions, as `reference.signs` lays them out."""
    signs_of_table(out.numpy(), table.numpy(), seed, step, ks.numpy())


def project(
    s: torch.Tensor, x: torch.Tensor, v: torch.Tensor, which: torch.Tensor,
    scales: torch.Tensor, padded: torch.Tensor | None = None,
) -> None:  # fmt: skip
    """s[j, t] = scales[row] * x[t] . v[j, which[row]]; see `reference.project`."""
    vectors, columns = x.shape
    to, stride = (0, 0) if padded is None else (_pointer(padded), padded.shape[1])
    runs, least = len(which), max(1, MIN_PER_TORCH_THREAD // columns)
    if _on_torch_threads(
        project_task, (x,), vectors, 1, least,
        _pointer(s), len(v), _pointer(x), _kind(x), vectors, columns, _pointer(v), v.shape[1],
        _pointer(which), _pointer(scales), runs, to, stride,
    ):  # fmt: skip
        return
    bits, kind = _stored(x)
    copy = bits[:0] if padded is None else _stored(padded)[0]
    project_span(
        s.numpy(), bits, kind, columns, v.view(len(v), -1).numpy(), which.numpy(), scales.numpy(),
        vectors // runs, copy, stride, 0, vectors,
    )  # fmt: skip


def spread(padded: torch.Tensor, s: torch.Tensor, which: torch.Tensor, columns: int) -> None:
    """padded[t, columns + which[row]] = s[t], 0 beside it; see `reference.spread`."""
    bits, kind = _stored(padded)
    vectors, stride = padded.shape
    count = vectors // len(which)
    spread_span(bits, kind, stride, columns, s.numpy(), which.numpy(), count, 0, vectors)


def widen(out: torch.Tensor, weight: torch.Tensor, u: torch.Tensor) -> None:
    """out = [weight, u^T, zeros]; see `reference.widen`."""
    rows, columns = weight.shape
    stride = out.shape[1]
    if _on_torch_threads(
        widen_task, (out, weight), rows, 1, max(1, MIN_PER_TORCH_THREAD // columns),
        rows, _pointer(out), _kind(out), _pointer(weight), _kind(weight), columns, stride,
        _pointer(u), len(u),
    ):  # fmt: skip
        return
    o, out_kind = _stored(out)
    w, kind = _stored(weight)
    widen_span(o, out_kind, w, kind, columns, stride, u.numpy(), 0, rows)


def prefill(
    y: torch.Tensor, s: torch.Tensor, u: torch.Tensor, which: torch.Tensor,
    bias: torch.Tensor | None = None,
) -> None:  # fmt: skip
    """y[t] = s[t] * u[which[row]] + bias[row] in float32; see `reference.prefill`."""
    vectors, columns = y.shape
    b = np.empty(0, np.float32) if bias is None else bias.reshape(-1).numpy()
    bias_stride = 0 if bias is None or len(bias) == 1 else columns
    runs, least = len(which), max(1, MIN_PER_TORCH_THREAD // columns)
    if _on_torch_threads(
        prefill_task, (), vectors, 1, least,
        _pointer(y), vectors, columns, _pointer(s), _pointer(u), len(u), _pointer(which), runs,
        _at(b), bias_stride, b.size,
    ):  # fmt: skip
        return
    prefill_span(
        y.view(-1).numpy(), columns, s.numpy(), u.reshape(-1).numpy(), which.numpy(), b, bias_stride,
        vectors // runs, 0, vectors,
    )  # fmt: skip


def update_dense(
    weight: torch.Tensor, sums: Sequence[DirectionSum], *, param: int, decay: float,
    rounding: Rounding, adam: AdamConstants | None = None, moments: Sequence[torch.Tensor] = (),
) -> None:  # fmt: skip
    """Move `weight` in place by sums of dense directions, in one sweep; see `reference`."""
    factors = (np.empty((0, 0), np.float32), np.empty((0, 0), np.int8), 0, 0)
    _update(weight, sums, factors, param, decay, rounding, adam, moments)


def update_rank1(
    weight: torch.Tensor, sums: Sequence[DirectionSum], *, param: int, decay: float,
    rounding: Rounding, adam: AdamConstants | None = None, moments: Sequence[torch.Tensor] = (),
) -> None:  # fmt: skip
    """Move matrices by sums of directions u v^T, in one sweep; see `reference`."""
    rows, columns = weight.shape[-2:]
    matrices = math.prod(weight.shape[:-2])
    u, v = _both_factors(sums, (matrices * rows, matrices * columns), param)
    if adam is not None or weight.dtype != torch.float32:
        _update(weight, sums, (u, v, rows, columns), param, decay, rounding, adam, moments)
        return
    arguments = (rows, columns, u.T.copy(), v, np.float32(sums[0].grid), np.float32(decay))
    flat = weight.view(-1).numpy()
    _spread(
        lambda a, b: add_outer_rows(flat, *arguments, a, b),
        matrices * rows,
        2,
        max(2, MIN_PER_THREAD // columns),
    )


def _update(
    weight: torch.Tensor, sums: Sequence[DirectionSum],
    factors: tuple[npt.NDArray[np.float32], npt.NDArray[np.int8], int, int], param: int,
    decay: float, rounding: Rounding, adam: AdamConstants | None, moments: Sequence[torch.Tensor],
) -> None:  # fmt: skip
    w, kind = _stored(weight)
    mode = SUM if adam is None else {0: WINDOW, 2: STORED, 3: AMSGRAD}[len(moments)]
    stored = [x.view(-1).numpy() for x in moments]
    stored += (3 - len(stored)) * [np.empty(0, np.float32)]
    adam = adam or AdamConstants(beta1=0.0, beta2=0.0, lr=0.0, correction=1.0, eps=0.0)
    gaussian = sums[0].gaussian
    steps, ks, n = _concatenated(sums)
    arguments = (
        sums[0].seed, param, steps, ks, n,
        np.cumsum([0, *(len(t.n) for t in sums)]),
        np.array([t.grid for t in sums], np.float32),
        gaussian, _table(gaussian), np.float32(decay),
        *(np.float32(x) for x in adam.constants()),
        rounding.seed, rounding.step,
        *factors,
    )  # fmt: skip
    _spread(
        lambda a, b: update_span(mode, w, kind, *stored, a, b, *arguments),
        w.size,
        32 * ROW,
        MIN_PER_THREAD,
    )


def _both_factors(
    sums: Sequence[DirectionSum], lengths: Sequence[int], param: int
) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.int8]]:
    """The factors of a parameter's rank-1 terms: n * u, float32, and v, int8, (terms, length) each."""
    steps, ks, n = _concatenated(sums)
    u, v = (np.empty((len(n), length), np.int8) for length in lengths)
    for out, purpose in ((u, PURPOSE_U), (v, PURPOSE_V)):
        if out.size:
            signs_of_terms(out, sums[0].seed, steps, ks, param, purpose)
    return u * n[:, None], v


def _concatenated(sums: Sequence[DirectionSum]) -> tuple[npt.NDArray[Any], ...]:
    """steps, ks and n of all terms."""
    return tuple(np.concatenate([getattr(t, name) for t in sums]) for name in ("steps", "ks", "n"))


def _table(gaussian: bool) -> npt.NDArray[np.float32]:
    return normal.table() if gaussian else np.empty(0, np.float32)
