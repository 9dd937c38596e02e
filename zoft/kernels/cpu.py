"""The sweeps on a CPU, bit-equal to `reference.py`: tensors and threads around `compiled.py`.

Threads are Python's (the kernels hold no GIL): a second OpenMP beside torch's would fight over cores.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from functools import cache
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from zoft.kernels import normal
from zoft.kernels.compiled import (
    BFLOAT16,
    FLOAT16,
    FLOAT32,
    ROW,
    STORED,
    SUM,
    WINDOW,
    perturb_rows_span,
    perturb_span,
    update_span,
)
from zoft.kernels.terms import Adam, Rounding, Terms

MIN_PER_THREAD = 1 << 16  # elements; below it a thread costs more than it saves
# Between two matrix products torch's idle threads still spin on their cores, so a second thread of ours
# waits for one: a probe of a 135M model took 54 to 84 ms for its sweeps on two threads, 44 ms on one.
MIN_PER_THREAD_IN_PROBE = 1 << 22


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


def _stored(tensor: torch.Tensor) -> tuple[npt.NDArray[Any], int]:
    """The tensor's bits as a flat numpy view, and how to read them."""
    flat = tensor.detach().view(-1)
    if tensor.dtype == torch.float32:
        return flat.numpy().view(np.uint32), FLOAT32
    kinds = {torch.bfloat16: BFLOAT16, torch.float16: FLOAT16}
    if tensor.dtype not in kinds:
        raise TypeError(f"weights of {tensor.dtype} cannot be tuned")
    return flat.view(torch.int16).numpy().view(np.uint16), kinds[tensor.dtype]


def perturb(
    out: torch.Tensor, weight: torch.Tensor, *, offset: int = 0, seed: int, step: int,
    param: int, k: int, scale: float, gaussian: bool,
) -> None:  # fmt: skip
    """out = weight + scale * z in float32, rounded once to out's dtype.

    Both are contiguous and of one size; `weight` may be a slice whose first element has number
    `offset` in the whole parameter.
    """
    o, out_kind = _stored(out)
    w, kind = _stored(weight)
    z = (offset, seed, step, param, k, np.float32(scale), gaussian, _table(gaussian))
    _spread(
        lambda a, b: perturb_span(o, out_kind, w, kind, a, b, *z),
        o.size,
        32 * ROW,
        MIN_PER_THREAD_IN_PROBE,
    )


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
    _spread(
        lambda a, b: perturb_rows_span(o, out_kind, w, kind, index, columns, a, b, *z),
        index.size,
        1,
        max(1, MIN_PER_THREAD_IN_PROBE // columns),
    )


def add_directions(
    weight: torch.Tensor, terms: Terms, *, param: int, decay: float, rounding: Rounding
) -> None:
    """weight = weight * decay + sum_i a_i z_i, in place, in one sweep."""
    _update(SUM, weight, None, None, [terms], None, param, decay, rounding)


def radazo_full(
    weight: torch.Tensor, exp_avg: torch.Tensor, exp_avg_sq: torch.Tensor, terms: Terms,
    adam: Adam, *, param: int, decay: float, rounding: Rounding,
) -> None:  # fmt: skip
    """One R-AdaZO update with stored float32 moments, all three in place."""
    _update(STORED, weight, exp_avg, exp_avg_sq, [terms], adam, param, decay, rounding)


def radazo_window(
    weight: torch.Tensor, window: list[Terms], adam: Adam, *, param: int, decay: float,
    rounding: Rounding,
) -> None:  # fmt: skip
    """One R-AdaZO update whose moments are recomputed from the last steps, oldest first."""
    _update(WINDOW, weight, None, None, window, adam, param, decay, rounding)


def _update(
    mode: int, weight: torch.Tensor, exp_avg: torch.Tensor | None,
    exp_avg_sq: torch.Tensor | None, window: list[Terms], adam: Adam | None, param: int,
    decay: float, rounding: Rounding,
) -> None:  # fmt: skip
    w, kind = _stored(weight)
    none = np.empty(0, np.float32)
    m = none if exp_avg is None else exp_avg.view(-1).numpy()
    v = none if exp_avg_sq is None else exp_avg_sq.view(-1).numpy()
    adam = adam or Adam(beta1=0.0, beta2=0.0, lr=0.0, correction=1.0, eps=0.0)
    gaussian = window[0].gaussian
    arguments = (
        window[0].seed, param,
        np.concatenate([t.steps for t in window]),
        np.concatenate([t.ks for t in window]),
        np.concatenate([t.n for t in window]),
        np.cumsum([0, *(len(t.n) for t in window)]),
        np.array([t.unit for t in window], np.float32),
        gaussian, _table(gaussian), np.float32(decay),
        *(np.float32(x) for x in adam.constants()),
        rounding.seed, rounding.step,
    )  # fmt: skip
    _spread(
        lambda a, b: update_span(mode, w, kind, m, v, a, b, *arguments),
        w.size,
        32 * ROW,
        MIN_PER_THREAD,
    )


def _table(gaussian: bool) -> npt.NDArray[np.float32]:
    return normal.table() if gaussian else np.empty(0, np.float32)
