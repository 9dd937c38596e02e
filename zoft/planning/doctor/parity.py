"""Every kernel of a device beside the reference on the CPU, on inputs that follow from one seed.

Bits must agree; of `project` the sums, whose order is free. Of a NaN only that it is one is promised.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from zoft.engine.kernels import reference
from zoft.engine.kernels.dispatch import Kernels, kernels_for
from zoft.engine.kernels.numerics.exact_sum import DirectionSum, Rounding, direction_sum
from zoft.recipe.sections.optimizers.rule import AdamConstants
from zoft.system.device import DTYPES
from zoft.system.philox import PURPOSE_U, PURPOSE_V

SPECIAL = (0.0, -0.0, float("inf"), -float("inf"), float("nan"), 65519.0, 65520.0, -3.3e38, 1e-40,
           -6e-8, 3e-8, 6.1e-5)  # fmt: skip
VECTORS = 6  # that a product takes

Case = Callable[[Kernels, torch.device, torch.dtype], list[Tensor]]


@dataclass(frozen=True)
class Inputs:
    """What the kernels are compared on: lengths of vectors, shapes of updated weights, (outputs,
    columns) of the products, types. Addresses of directions and all numbers follow from `seed` < 2**32.
    """

    seed: int
    lengths: tuple[int, ...] = (1, 255, 8193)
    shapes: tuple[tuple[int, ...], ...] = ((7,), (4099,), (9, 577), (2, 3, 512))
    product: tuple[int, int] = (37, 577)
    types: tuple[str, ...] = tuple(DTYPES)

    @classmethod
    def tiny(cls, seed: int) -> Inputs:
        """What Triton's interpreter compares in some seconds."""
        return cls(seed, (77,), ((3, 77),), (9, 77), ("bfloat16",))

    @property
    def address(self) -> dict[str, int]:
        """The seed, step and parameter of the directions: as large as they come."""
        return {"seed": self.seed, "step": self.seed // 3, "param": 2**32 - 1 - self.seed // 7}

    def weights(self, shape: tuple[int, ...], device: torch.device, dtype: torch.dtype) -> Tensor:
        """From far below to well above 1, and what is no number at all."""
        generator = torch.Generator().manual_seed(self.seed)
        scale = torch.exp2(torch.randint(-30, 6, shape, generator=generator).float())
        x = torch.randn(shape, generator=generator) * scale
        if x.numel() > 60:
            x.view(-1)[17 : 17 + len(SPECIAL)] = torch.tensor(SPECIAL)
        return x.to(dtype).to(device)

    def terms(self, count: int, *, gaussian: bool, step: int) -> DirectionSum:
        """The sum of some directions of a step, the first coefficients the largest."""
        coefficients = [(-1) ** i * 1e-3 / (1 + i) for i in range(count)]
        return direction_sum(
            self.seed, gaussian, [(step, 9 * k) for k in range(count)], coefficients
        )


def kernels_on(device: torch.device) -> Kernels:
    """The kernels of the device; on a CPU Triton's, which its interpreter runs (TRITON_INTERPRET=1)."""
    if device.type != "cpu":
        return kernels_for(device)
    from zoft.engine.kernels.triton import sweeps

    return sweeps


def parity(kernels: Kernels, device: torch.device, inputs: Inputs) -> Iterator[tuple[str, bool]]:
    """Yield the name of each comparison, and whether the kernels agree with the reference."""
    cpu = torch.device("cpu")
    for name, case in cases(inputs).items():
        same = close if name == "project" else equal
        for called in inputs.types:
            dtype = DTYPES[called]
            ours, theirs = case(kernels, device, dtype), case(reference, cpu, dtype)
            agree = all(same(x.cpu(), y) for x, y in zip(ours, theirs, strict=True))
            yield f"{name} {called}", agree


def equal(x: Tensor, y: Tensor) -> bool:
    """Whether all bits are the same, but for those of NaN."""
    kind = {1: torch.int8, 2: torch.int16, 4: torch.int32}[x.element_size()]
    return bool(((x.view(kind) == y.view(kind)) | (x.isnan() & y.isnan())).all())


def close(x: Tensor, y: Tensor) -> bool:
    """Whether sums of as many terms as the last axis is long agree, whatever their order."""
    return torch.allclose(x.float(), y.float(), rtol=2e-6, atol=2e-6 * x.shape[-1] ** 0.5)


def cases(inputs: Inputs) -> dict[str, Case]:
    """Name -> what a kernel module makes of the inputs on a device."""
    found: dict[str, Case] = {}
    for kind, gaussian in (("", False), (" Gaussian", True)):
        found[f"perturb, perturb_pair{kind}"] = partial(_perturb, inputs, gaussian)
        found[f"perturb_rows{kind}"] = partial(_perturb_rows, inputs, gaussian)
        found[f"update_dense{kind}"] = partial(_update, inputs, gaussian, "update_dense")
    found["update_rank1"] = partial(_update, inputs, False, "update_rank1")
    found["perturb_each"] = partial(_perturb_each, inputs)
    found["signs, spread, widen, prefill"] = partial(_around_a_product, inputs)
    found["project"] = partial(_project, inputs)
    return found


def _perturb(
    inputs: Inputs, gaussian: bool, kernels: Kernels, device: torch.device, dtype: torch.dtype
) -> list[Tensor]:
    found = []
    for length in inputs.lengths:
        for offset in (0, 2**40 + 77):
            weight = inputs.weights((length,), device, torch.float32)
            out, plus, minus = (torch.empty(length, dtype=dtype, device=device) for _ in range(3))
            z: dict[str, Any] = {**inputs.address, "k": 5, "scale": 3e-3, "offset": offset}
            kernels.perturb(out, weight, **z, gaussian=gaussian)
            kernels.perturb_pair(plus, minus, weight.to(dtype), **z, gaussian=gaussian)
            found += [out, plus, minus]
    return found


def _perturb_rows(
    inputs: Inputs, gaussian: bool, kernels: Kernels, device: torch.device, dtype: torch.dtype
) -> list[Tensor]:
    matrix = inputs.weights((41, inputs.product[1]), device, dtype)
    rows = torch.tensor([40, 0, 7, 7], device=device)
    out = torch.empty(len(rows), matrix.shape[1], device=device)
    kernels.perturb_rows(out, matrix, rows, **inputs.address, k=5, scale=0.01, gaussian=gaussian)
    return [out]


def _perturb_each(
    inputs: Inputs, kernels: Kernels, device: torch.device, dtype: torch.dtype
) -> list[Tensor]:
    ks = torch.tensor([0, 5, 2**24 - 1], device=device)
    scales = torch.tensor([1e-3, -1e-3, 0.3], device=device)
    weight = inputs.weights((inputs.lengths[-1],), device, dtype)
    out = torch.empty(3, len(weight), device=device)  # float32, as probes ask for it
    kernels.perturb_each(out, weight, **inputs.address, ks=ks, scales=scales)
    return [out]


def _factors(inputs: Inputs, kernels: Kernels, device: torch.device) -> tuple[Tensor, Tensor]:
    """Three directions' u, (3, outputs), and v, (3, columns), of signs."""
    rows, columns = inputs.product
    out = torch.empty(3 * (rows + columns), dtype=torch.int8, device=device)
    table = torch.tensor([[5, PURPOSE_U, rows, 0], [5, PURPOSE_V, columns, 3 * rows]])
    ks = torch.tensor([0, 5, 9], device=device)
    seed, step = inputs.address["seed"], inputs.address["step"]
    kernels.signs(out, table.to(device), seed=seed, step=step, ks=ks)
    return out[: 3 * rows].view(3, rows), out[3 * rows :].view(3, columns)


def _project(
    inputs: Inputs, kernels: Kernels, device: torch.device, dtype: torch.dtype
) -> list[Tensor]:
    _, v = _factors(inputs, kernels, device)
    columns, which = inputs.product[1], torch.tensor([2, 0, 1], device=device)
    generator = torch.Generator().manual_seed(inputs.seed)
    x = torch.randn(VECTORS, columns, generator=generator).to(dtype).to(device)
    s = torch.empty(1, VECTORS, device=device)
    padded = torch.zeros(VECTORS, columns + 8, dtype=dtype, device=device)
    kernels.project(s, x, v[None], which, torch.linspace(-1, 1, 3).to(device), padded)
    return [s.T.expand(-1, columns), padded]  # a sum has as many terms as there are columns


def _around_a_product(
    inputs: Inputs, kernels: Kernels, device: torch.device, dtype: torch.dtype
) -> list[Tensor]:
    u, v = _factors(inputs, kernels, device)
    rows, columns = inputs.product
    which = torch.tensor([2, 0, 1], device=device)
    s = torch.linspace(-1, 1, VECTORS).to(device)
    padded = torch.zeros(VECTORS, columns + 8, dtype=dtype, device=device)
    kernels.spread(padded, s, which, columns)
    wide = torch.empty(rows, columns + 8, dtype=dtype, device=device)
    kernels.widen(wide, inputs.weights((rows, columns), device, dtype), u)
    y = torch.empty(VECTORS, rows, device=device)
    kernels.prefill(y, s, u, which, torch.full((1, rows), 1 / 3).to(device))
    return [u, v, padded, wide, y]


def _update(
    inputs: Inputs,
    gaussian: bool,
    name: str,
    kernels: Kernels,
    device: torch.device,
    dtype: torch.dtype,
) -> list[Tensor]:
    """A sum, R-AdaZO with stored moments and with a window, and ZO-AdaMM, whose third moment is the
    largest second one; along rank-1 directions of what has two axes or three."""
    terms = partial(inputs.terms, gaussian=gaussian)
    common: dict[str, Any] = {"param": inputs.address["param"], "decay": 1 - 1e-4}
    common["rounding"] = Rounding(inputs.seed, 3)
    adam = AdamConstants(0.9, 0.99, 1e-3, 0.0297, 1e-8)
    found = []
    for shape in inputs.shapes:
        if name == "update_rank1" and len(shape) == 1:
            continue
        update = getattr(kernels, name)
        a, b, c, d = (inputs.weights(shape, device, dtype) for _ in range(4))
        m = inputs.weights(shape, device, torch.float32) * 1e-4
        v = m.abs() * 1e-2
        three = [m.clone(), v.clone(), v.flip(-1).contiguous()]
        update(a, [terms(5, step=3)], **common)
        update(b, [terms(2, step=3)], adam=adam, moments=(m, v), **common)
        update(c, [terms(2, step=step) for step in (1, 2, 3)], adam=adam, **common)
        update(d, [terms(2, step=3)], adam=adam, moments=three, **common)
        found += [a, b, c, d, m, v, *three]
    return found
