"""GB/s of each sweep over one large matrix, beside the copy of the same card.

python -m gpu.parts.sweeps --out DIR
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from gpu import floors
from gpu.contestants import EPSILON
from gpu.measuring import Step, part, timed
from zoft.engine.kernels.dispatch import Kernels
from zoft.engine.kernels.numerics.exact_sum import Rounding, direction_sum
from zoft.planning.doctor.parity import kernels_on
from zoft.recipe.sections.optimizers.rule import AdamConstants
from zoft.system.device import DTYPES

ADAM = AdamConstants(0.9, 0.99, 1e-6, 0.01, 1e-8)
WINDOW = 22  # gradients


def main() -> None:
    """Measure in both types of 16 bits."""
    a = part(__doc__)
    side, repeats = (48, 1) if a.rehearse else (8192, 10)
    for dtype in ("bfloat16",) if a.rehearse else ("bfloat16", "float16"):
        weight = torch.randn(side, side, device=a.device).to(DTYPES[dtype])
        copied = 0.0
        for name, (moved, sweep) in sweeps(kernels_on(a.device), weight).items():
            rate = moved * weight.numel() / timed(sweep, repeats, a.device) / 1e9
            copied = copied or rate
            a.results.emit(
                f"Sweep, {dtype}",
                **{"sweep": name, "GB/s": rate, "over copy": rate / copied},
                predicted=floors.COPY / 1e9,
            )


def sweeps(kernels: Kernels, weight: Tensor) -> dict[str, tuple[int, Step]]:
    """Of each sweep: bytes that it moves for an element, and the call."""
    out, other = torch.empty_like(weight), torch.empty_like(weight)
    moments = tuple(torch.zeros(weight.shape, device=weight.device) for _ in range(2))
    key: dict[str, Any] = {"seed": 1, "step": 2, "param": 3, "k": 0, "scale": EPSILON}
    common: dict[str, Any] = {"param": 3, "decay": 1.0, "rounding": Rounding(1, 2)}
    width = weight.element_size()

    def update(name: str, sums: list[Any], **more: Any) -> Callable[[], None]:
        return lambda: getattr(kernels, name)(weight, sums, **common, **more)

    def perturb(*, gaussian: bool) -> Callable[[], None]:
        return lambda: kernels.perturb(out, weight, **key, gaussian=gaussian)

    window = [terms(1) for _ in range(WINDOW)]
    return {
        "copy": (2 * width, lambda: out.copy_(weight)),
        "perturb": (2 * width, perturb(gaussian=False)),
        "perturb Gaussian": (2 * width, perturb(gaussian=True)),
        "perturb_pair": (
            3 * width,
            lambda: kernels.perturb_pair(out, other, weight, **key, gaussian=False),
        ),
        "sum of 1": (2 * width, update("update_dense", [terms(1)])),
        "sum of 1 Gaussian": (2 * width, update("update_dense", [terms(1, gaussian=True)])),
        "sum of 1 rank-1": (2 * width, update("update_rank1", [terms(1)])),
        "sum of 16 rank-1": (2 * width, update("update_rank1", [terms(16)])),
        "R-AdaZO, stored moments": (
            2 * width + 16,
            update("update_dense", [terms(1)], adam=ADAM, moments=moments),
        ),
        f"R-AdaZO, window of {WINDOW}": (2 * width, update("update_dense", window, adam=ADAM)),
        f"R-AdaZO, window of {WINDOW} rank-1": (
            2 * width,
            update("update_rank1", window, adam=ADAM),
        ),
    }


def terms(count: int, *, gaussian: bool = False) -> Any:
    """The sum of some directions of one step."""
    return direction_sum(1, gaussian, [(2, k) for k in range(count)], [1e-9] * count)


if __name__ == "__main__":
    main()
