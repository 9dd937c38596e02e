"""The sweeps as operators of torch, so that a compiled graph can hold them: `torch.ops.zoft.*`.

A graph is compiled once and serves every step: what changes from step to step comes in small tensors,

    address   int64 (seed, step, k), or (seed, step) where there are many k
    scale     float32 (1,), +-epsilon

on the device of the weights. On a GPU the kernels read them there; elsewhere they are read here. All
operators write into tensors that they are given, say which, and return nothing.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from zoft.kernels.dispatch import kernels_for
from zoft.kernels.terms import Rounding, Terms


def _at(kernels: Any, name: str) -> Any:
    """The sweep that takes its address in memory, where the device has one."""
    return getattr(kernels, f"{name}_at", None)


def _key(address: Tensor) -> dict[str, Any]:
    return dict(zip(("seed", "step", "k"), address.tolist(), strict=False))


@torch.library.custom_op("zoft::perturb", mutates_args=("out",))
def perturb(
    out: Tensor, weight: Tensor, address: Tensor, scale: Tensor, param: int, gaussian: bool,
    offset: int = 0,
) -> None:  # fmt: skip
    """out = weight + scale * z, rounded once to out's dtype."""
    kernels = kernels_for(weight.device)
    kind: dict[str, Any] = {"param": param, "gaussian": gaussian}
    if at := _at(kernels, "perturb"):
        at(out, weight, address, scale, offset=offset, **kind)
    else:
        kernels.perturb(out, weight, offset=offset, **_key(address), scale=scale.item(), **kind)


@torch.library.custom_op("zoft::perturb_pair", mutates_args=("plus", "minus"))
def perturb_pair(
    plus: Tensor, minus: Tensor, weight: Tensor, address: Tensor, scale: Tensor, param: int,
    gaussian: bool, offset: int = 0,
) -> None:  # fmt: skip
    """plus = weight + scale * z and minus = weight - scale * z."""
    kernels = kernels_for(weight.device)
    kind: dict[str, Any] = {"param": param, "gaussian": gaussian}
    if at := _at(kernels, "perturb_pair"):
        at(plus, minus, weight, address, scale, offset=offset, **kind)
    else:
        key = {**_key(address), "scale": scale.item(), **kind}
        kernels.perturb_pair(plus, minus, weight, offset=offset, **key)


@torch.library.custom_op("zoft::perturb_rows", mutates_args=("out",))
def perturb_rows(
    out: Tensor, weight: Tensor, rows: Tensor, address: Tensor, scale: Tensor, param: int,
    gaussian: bool,
) -> None:  # fmt: skip
    """out[i] = weight[rows[i]] + scale * z; weight (R, C), rows (n,) int64, out (n, C)."""
    kernels = kernels_for(weight.device)
    kind: dict[str, Any] = {"param": param, "gaussian": gaussian}
    if at := _at(kernels, "perturb_rows"):
        at(out, weight, rows, address, scale, **kind)
    else:
        kernels.perturb_rows(out, weight, rows, **_key(address), scale=scale.item(), **kind)


@torch.library.custom_op("zoft::perturb_each", mutates_args=("out",))
def perturb_each(
    out: Tensor, weight: Tensor, address: Tensor, ks: Tensor, scales: Tensor, param: int
) -> None:
    """out[i] = weight + scales[i] * z(ks[i]), signs; weight (C,), ks (n,) int64, out (n, C)."""
    kernels = kernels_for(weight.device)
    if at := _at(kernels, "perturb_each"):
        at(out, weight, address, ks, scales, param=param)
    else:
        kernels.perturb_each(out, weight, **_key(address[:2]), param=param, ks=ks, scales=scales)


@torch.library.custom_op("zoft::project", mutates_args=("s", "padded"))
def project(
    s: Tensor, x: Tensor, v: Tensor, which: Tensor, scales: Tensor,
    padded: Tensor | None = None,
) -> None:  # fmt: skip
    """s[j, t] = scales[row] * sum_c x[t, c] * v[j, which[row], c]; see `reference.project`."""
    kernels_for(x.device).project(s, x, v, which, scales, padded)


@torch.library.custom_op("zoft::spread", mutates_args=("padded",))
def spread(padded: Tensor, s: Tensor, which: Tensor, columns: int) -> None:
    """padded[t, columns + which[row]] = s[t]; zero in the others of its last columns."""
    kernels_for(padded.device).spread(padded, s, which, columns)


@torch.library.custom_op("zoft::widen", mutates_args=("out",))
def widen(out: Tensor, weight: Tensor, u: Tensor) -> None:
    """out (O, C + P) = [weight, u^T, zeros]."""
    kernels_for(weight.device).widen(out, weight, u)


@torch.library.custom_op("zoft::prefill", mutates_args=("y",))
def prefill(
    y: Tensor, s: Tensor, u: Tensor, which: Tensor, bias: Tensor | None = None
) -> None:  # fmt: skip
    """y[t] = s[t] * u[which[row]] + bias[row]."""
    kernels_for(y.device).prefill(y, s, u, which, bias)


@torch.library.custom_op("zoft::add_directions", mutates_args=("weight",))
def add_directions(
    weight: Tensor, terms: Tensor, key: Tensor, factors: Tensor, param: int, gaussian: bool,
    rank1: bool,
) -> None:  # fmt: skip
    """weight = weight * decay + sum_i a_i z_i, in place. The small tensors lie on the host:

    terms int64 (N, 3): step, k and integer coefficient of a direction · key int64 (3,): the run's
    seed, then seed and step of the rounding bits · factors float64 (2,): unit, decay.
    """
    seed, rounding_seed, rounding_step = key.tolist()
    unit, decay = factors.tolist()
    steps, ks, n = terms.numpy().T.copy()
    added = Terms(
        seed=seed, gaussian=gaussian, steps=steps, ks=ks, n=n.astype("float32"), unit=unit,
        rank1=rank1,
    )  # fmt: skip
    rounding = Rounding(rounding_seed, rounding_step)
    kernels_for(weight.device).add_directions(
        weight, added, param=param, decay=decay, rounding=rounding
    )


def _nothing(*_: object, **__: object) -> None:
    """What every operator above returns for fake tensors: it only writes."""


for _op in (perturb, perturb_pair, perturb_rows, perturb_each, project, spread, widen, prefill,
            add_directions):  # fmt: skip
    _op.register_fake(_nothing)
