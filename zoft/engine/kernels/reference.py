"""The sweeps written literally in torch: one Philox call per element, no tiles, any device.

Slow twin of `cpu.py`, bit for bit. It also serves devices that have no kernels of their own yet.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache

import torch
from torch import Tensor

from zoft.engine.kernels.numerics import gaussian as normal
from zoft.engine.kernels.numerics.exact_sum import DirectionSum, Rounding
from zoft.recipe.sections.optimizers.rule import AdamConstants
from zoft.system.philox import (
    M0,
    M1,
    PURPOSE_DENSE,
    PURPOSE_ROUNDING,
    PURPOSE_U,
    PURPOSE_V,
    ROUNDS,
    W0,
    W1,
    last_word,
)

CHUNK = 1 << 22  # elements at a time: int64 temporaries of 32 MiB
# z at flat int64 element numbers, for a sum's direction (step, k): float32 of the same shape
Draw = Callable[[Tensor, DirectionSum, int, int], Tensor]


def philox_word(
    block: Tensor, output: Tensor, seed: int, step: int, param: int, last: int
) -> Tensor:
    """Output `output` (0..3) of the call with counter (block, param, last); int64, same shape.

    A product of two 32-bit words may wrap int64; its 64 bits are right all the same.
    """
    low = 0xFFFFFFFF
    c0, c1 = block & low, block >> 32
    c2, c3 = torch.full_like(block, param), torch.full_like(block, last)
    k0, k1 = seed, step
    for _ in range(ROUNDS):
        p0, p1 = c0 * M0, c2 * M1
        c0, c1 = ((p1 >> 32) & low) ^ c1 ^ k0, p1 & low
        c2, c3 = ((p0 >> 32) & low) ^ c3 ^ k1, p0 & low
        k0, k1 = (k0 + W0) & low, (k1 + W1) & low
    return torch.stack([c0, c1, c2, c3]).gather(0, output[None])[0]


def sign_bits(elements: Tensor, seed: int, step: int, param: int, last: int) -> Tensor:
    """Layout 1, one bit per element: tiles of 8,192 elements and 64 calls."""
    tile, inside = elements // 8192, elements % 8192
    part, word = inside // 256, inside % 256
    return philox_word(tile * 64 + word % 64, word // 64, seed, step, param, last) >> part & 1


def halves(elements: Tensor, seed: int, step: int, param: int, last: int) -> Tensor:
    """Layout 1, sixteen bits per element: tiles of 512 elements and 64 calls."""
    tile, inside = elements // 512, elements % 512
    part, word = inside // 256, inside % 256
    bits = philox_word(tile * 64 + word % 64, word // 64, seed, step, param, last)
    return bits >> 16 * part & 0xFFFF


@cache
def _table(device: torch.device) -> Tensor:
    return torch.from_numpy(normal.table().copy()).to(device)


def direction(
    elements: Tensor, *, seed: int, step: int, param: int, k: int, gaussian: bool
) -> Tensor:
    """z at the given flat int64 element numbers: float32 of the same shape."""
    last = last_word(PURPOSE_DENSE, k)
    if gaussian:
        return _table(elements.device)[halves(elements, seed, step, param, last)]
    return _signs(elements, seed, step, param, last)


def _signs(elements: Tensor, seed: int, step: int, param: int, last: int) -> Tensor:
    return 1.0 - 2.0 * sign_bits(elements, seed, step, param, last).to(torch.float32)


def perturb(
    out: Tensor, weight: Tensor, *, offset: int = 0, seed: int, step: int, param: int, k: int,
    scale: float, gaussian: bool,
) -> None:  # fmt: skip
    """out = weight + scale * z in float32, rounded once to out's dtype (see `cpu.perturb`)."""
    flat_out, flat = out.view(-1), weight.reshape(-1)
    for begin in range(0, flat.numel(), CHUNK):
        part = slice(begin, min(begin + CHUNK, flat.numel()))
        elements = torch.arange(offset + part.start, offset + part.stop, device=weight.device)
        z = direction(elements, seed=seed, step=step, param=param, k=k, gaussian=gaussian)
        flat_out[part] = (flat[part].float() + _f32(scale) * z).to(out.dtype)


def perturb_pair(
    plus: Tensor, minus: Tensor, weight: Tensor, *, offset: int = 0, seed: int, step: int,
    param: int, k: int, scale: float, gaussian: bool,
) -> None:  # fmt: skip
    """plus = weight + scale * z and minus = weight - scale * z, each as `perturb` rounds it."""
    z = {"offset": offset, "seed": seed, "step": step, "param": param, "k": k}
    perturb(plus, weight, **z, scale=scale, gaussian=gaussian)
    perturb(minus, weight, **z, scale=-scale, gaussian=gaussian)


def perturb_each(
    out: Tensor, weight: Tensor, *, seed: int, step: int, param: int, ks: Tensor, scales: Tensor
) -> None:
    """out[i] = weight + scales[i] * z(ks[i]), signs; weight (C,), ks (n,) int64, out (n, C)."""
    elements = torch.arange(weight.numel(), device=weight.device)
    for i, k in enumerate(ks.tolist()):
        z = _signs(elements, seed, step, param, last_word(PURPOSE_DENSE, k))
        out[i] = (weight.float() + scales[i] * z).to(out.dtype)


def signs(out: Tensor, table: Tensor, *, seed: int, step: int, ks: Tensor) -> None:
    """The factors u and v of a step's rank-1 directions ks (n,), as +-1 in the flat int8 `out`.

    A row of the int64 `table` (F, 4) is (parameter id, purpose, length, offset) of one factor: its n
    vectors of that length stand in out[offset : offset + n * length], one after the other.
    """
    for param, purpose, length, offset in table.tolist():
        elements = torch.arange(length, device=out.device)
        for i, k in enumerate(ks.tolist()):
            begin = offset + i * length
            drawn = _signs(elements, seed, step, param, last_word(purpose, k))
            out[begin : begin + length] = drawn.to(torch.int8)


def project(
    s: Tensor, x: Tensor, v: Tensor, which: Tensor, scales: Tensor, padded: Tensor | None = None
) -> None:
    """s[j, t] = scales[row] * sum_c x[t, c] * v[j, which[row], c] in float32; optionally copy x.

    x (N, C) · v (J, n, C) int8 · s (J, N) float32 · which (R,) int64 and scales (R,) float32 belong to
    the R equal runs of N / R vectors. padded (N, C + P): its first C columns become x, in x's type.
    """
    count = x.shape[0] // which.shape[0]
    row = torch.arange(x.shape[0], device=x.device) // count
    for j in range(v.shape[0]):
        s[j] = (x.float() * v[j][which[row]]).sum(-1) * scales[row]
    if padded is not None:
        padded[:, : x.shape[1]] = x


def spread(padded: Tensor, s: Tensor, which: Tensor, columns: int) -> None:
    """padded[t, columns + which[row]] = s[t]; zero in the others of its last P columns.

    padded (N, columns + P) as `project` copied it · s (N,) float32 · which (R,) int64 below P, for R
    equal runs of vectors. Multiplied with `widen`'s matrix, they add s * u inside the product.
    """
    count = padded.shape[0] // which.shape[0]
    padded[:, columns:] = 0
    target = columns + which.repeat_interleave(count)
    padded.scatter_(1, target[:, None], s[:, None].to(padded.dtype))


def widen(out: Tensor, weight: Tensor, u: Tensor) -> None:
    """out (O, C + P) = [weight, u^T, zeros] in out's dtype; weight (O, C), u (n, O) int8, n <= P."""
    columns = weight.shape[1]
    out[:, :columns] = weight
    out[:, columns : columns + u.shape[0]] = u.t()
    out[:, columns + u.shape[0] :] = 0


def prefill(y: Tensor, s: Tensor, u: Tensor, which: Tensor, bias: Tensor | None = None) -> None:
    """y[t] = s[t] * u[which[row]] + bias[row] in float32, to be accumulated upon by a product.

    y (N, O) float32 · s (N,) float32 · u (n, O) int8 · which (R,) int64, for R equal runs of vectors ·
    bias (R, O) or (1, O) float32, or None.
    """
    count = y.shape[0] // which.shape[0]
    row = torch.arange(y.shape[0], device=y.device) // count
    torch.mul(s[:, None], u[which[row]], out=y)
    if bias is not None:
        y += bias.expand(which.shape[0], -1)[row]


def perturb_rows(
    out: Tensor, weight: Tensor, rows: Tensor, *, seed: int, step: int, param: int, k: int,
    scale: float, gaussian: bool,
) -> None:  # fmt: skip
    """out[i] = weight[rows[i]] + scale * z; weight (R, C), rows (n,) int64, out (n, C)."""
    columns = weight.shape[1]
    elements = rows[:, None] * columns + torch.arange(columns, device=rows.device)
    z = direction(elements, seed=seed, step=step, param=param, k=k, gaussian=gaussian)
    out.copy_((weight[rows].float() + _f32(scale) * z).to(out.dtype))


def update_dense(
    weight: Tensor, sums: Sequence[DirectionSum], *, param: int, decay: float, rounding: Rounding,
    adam: AdamConstants | None = None, moments: Sequence[Tensor] = (),
) -> None:  # fmt: skip
    """Move `weight` in place by sums of dense directions, one sum for each step of a rule.

    Without `adam`: weight * decay + sums[0]. With it, one R-AdaZO update: its float32 `moments`
    (exp_avg, exp_avg_sq) are stored and move too (one sum), or are recomputed from the last steps,
    oldest first. With three of them (and max_exp_avg_sq) it is one of ZO-AdaMM.
    """

    def z(elements: Tensor, terms: DirectionSum, step: int, k: int) -> Tensor:
        return direction(
            elements, seed=terms.seed, step=step, param=param, k=k, gaussian=terms.gaussian
        )

    _update(weight, sums, z, param, decay, rounding, adam, moments)


def update_rank1(
    weight: Tensor, sums: Sequence[DirectionSum], *, param: int, decay: float, rounding: Rounding,
    adam: AdamConstants | None = None, moments: Sequence[Tensor] = (),
) -> None:  # fmt: skip
    """Move a matrix (R, C), or each of E matrices (E, R, C), by sums of directions u v^T, u and v signs;
    see `update_dense`. Matrix e has the elements from e R of u on, and from e C of v."""
    rows, columns = weight.shape[-2:]

    def z(elements: Tensor, terms: DirectionSum, step: int, k: int) -> Tensor:
        row, matrix = elements // columns, elements // (rows * columns)
        column = matrix * columns + elements % columns
        u = _signs(row, terms.seed, step, param, last_word(PURPOSE_U, k))
        return u * _signs(column, terms.seed, step, param, last_word(PURPOSE_V, k))

    _update(weight, sums, z, param, decay, rounding, adam, moments)


def add_scaled(
    weight: Tensor, other: Tensor, factor: float, *, param: int, decay: float, rounding: Rounding
) -> None:
    """weight = weight * decay + factor * other (float32, of the same shape), in place."""
    flat, added = weight.view(-1), other.view(-1)
    if weight.dtype == torch.float32:
        flat.mul_(_f32(decay)).add_(added * _f32(factor))
        return
    for elements in _chunks(flat):
        x = flat[elements].float() * _f32(decay) + added[elements] * _f32(factor)
        flat[elements] = _rounded(x, weight.dtype, elements, param, rounding)


def _update(
    weight: Tensor, sums: Sequence[DirectionSum], z: Draw, param: int, decay: float,
    rounding: Rounding, adam: AdamConstants | None, moments: Sequence[Tensor],
) -> None:  # fmt: skip
    flat, stored = weight.view(-1), [moment.view(-1) for moment in moments]
    for elements in _chunks(flat):
        x = flat[elements].float()
        if adam is None:
            x = x * _f32(decay) + _sum(elements, sums[0], z)
        else:
            kept = [s[elements] for s in stored] or 2 * [torch.zeros_like(x)]
            for terms in sums:
                kept = _moments(kept, _sum(elements, terms, z), adam)
            for s, new in zip(stored, kept, strict=False):  # a window stores none
                s[elements] = new
            x = _stepped(x, kept[0], kept[-1], adam, decay)
        flat[elements] = _rounded(x, weight.dtype, elements, param, rounding)


def _chunks(flat: Tensor) -> list[Tensor]:
    n = flat.numel()
    return [
        torch.arange(begin, min(begin + CHUNK, n), device=flat.device)
        for begin in range(0, n, CHUNK)
    ]


def _sum(elements: Tensor, terms: DirectionSum, z: Draw) -> Tensor:
    total = torch.zeros(elements.shape, dtype=torch.float64, device=elements.device)
    for step, k, n in zip(terms.steps.tolist(), terms.ks.tolist(), terms.n.tolist(), strict=True):
        total += n * z(elements, terms, step, k).double()
    return total.float() * _f32(terms.grid)


def _moments(kept: Sequence[Tensor], g: Tensor, adam: AdamConstants) -> list[Tensor]:
    """m and v after a step; with a largest v, as ZO-AdaMM has it: v of g, and not of m."""
    beta1, beta2, rest1, rest2, *_ = (_f32(x) for x in adam.constants())
    m, v, *largest = kept
    m = m * beta1 + g * rest1
    averaged = g if largest else m
    v = v * beta2 + (averaged * averaged) * rest2
    return [m, v, *(torch.where(v > old, v, old) for old in largest)]


def _stepped(x: Tensor, m: Tensor, v: Tensor, adam: AdamConstants, decay: float) -> Tensor:
    *_, lr, correction, eps = (_f32(x) for x in adam.constants())
    # A tensor divisor: torch turns division by a Python number into a multiplication.
    v_hat = v / torch.full_like(v, correction)
    # Through float64: torch's float32 sqrt is 1 ulp off on a fifth of all inputs (MKL), IEEE's is not.
    root = torch.sqrt(v_hat.double()).float()
    return x * _f32(decay) - (m * lr) / (root + eps)


def _rounded(
    x: Tensor, dtype: torch.dtype, elements: Tensor, param: int, rounding: Rounding
) -> Tensor:
    """Stochastic rounding: unbiased, and nothing moves where x is representable."""
    if dtype == torch.float32:
        return x
    last = last_word(PURPOSE_ROUNDING, 0)
    r = halves(elements, rounding.seed, rounding.step, param, last)
    bits = x.view(torch.int32).long() & 0xFFFFFFFF
    magnitude = bits & 0x7FFFFFFF
    if dtype == torch.bfloat16:
        r = torch.where(magnitude >= 0x7F800000, 0, r)  # inf and NaN pass
        return _from_int16((bits + r) >> 16, dtype)
    r = r & 0x1FFF
    normal_half = (magnitude - 0x38000000 + r) >> 13
    subnormal_half = (x.abs() * 2.0**24 + r.float() * 2.0**-13).to(torch.int32).long()
    half = torch.where(magnitude < 0x38800000, subnormal_half, normal_half).clamp(max=0x7C00)
    half = torch.where(magnitude == 0x7F800000, 0x7C00, half)
    half = torch.where(magnitude > 0x7F800000, 0x7E00, half)
    return _from_int16(half | bits >> 16 & 0x8000, dtype)


def _from_int16(bits: Tensor, dtype: torch.dtype) -> Tensor:
    return torch.where(bits >= 0x8000, bits - 0x10000, bits).to(torch.int16).view(dtype)


def _f32(x: float) -> float:
    """The float32 nearest to x. Torch rounds Python numbers so anyway; this says it."""
    return torch.tensor(x, dtype=torch.float32).item()
