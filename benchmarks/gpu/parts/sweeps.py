"""GB/s of each sweep over one large matrix, beside the copy of the same card.

python -m gpu.parts.sweeps --out DIR
"""

from __future__ import annotations

from dataclasses import dataclass
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


@dataclass(frozen=True)
class Sweep:
    """A call, the bytes that it moves for an element, its kernel in the table of instructions (None: a
    copy) and how many directions it draws for an element."""

    call: Step
    moved: int
    kernel: str | None
    turns: int = 1


def main() -> None:
    """Measure in both types of 16 bits."""
    a = part(__doc__)
    side, repeats = (48, 1) if a.rehearse else (8192, 10)
    for dtype in ("bfloat16",) if a.rehearse else ("bfloat16", "float16"):
        weight = torch.randn(side, side, device=a.device).to(DTYPES[dtype])
        copied = 0.0
        many = 2 if a.rehearse else 16
        for name, sweep in sweeps(kernels_on(a.device), weight, many).items():
            rate = sweep.moved * weight.numel() / timed(sweep.call, repeats, a.device) / 1e9
            copied = copied or rate
            figures = {
                "GB/s": rate,
                "over copy": rate / copied,
                "at most by bytes": floors.COPY / 1e9,
            }
            if sweep.kernel:
                seconds = floors.of_instructions(sweep.kernel, sweep.turns)
                figures["at most by arithmetic"] = sweep.moved / seconds / 1e9
            a.results.emit(f"Sweep, {dtype}", sweep=name, **figures)


def sweeps(kernels: Kernels, weight: Tensor, many: int) -> dict[str, Sweep]:
    """All of them; those along several directions take `many`."""
    out, other = torch.empty_like(weight), torch.empty_like(weight)
    moments = tuple(torch.zeros(weight.shape, device=weight.device) for _ in range(2))
    key: dict[str, Any] = {"seed": 1, "step": 2, "param": 3, "k": 0, "scale": EPSILON}
    common: dict[str, Any] = {"param": 3, "decay": 1.0, "rounding": Rounding(1, 2)}
    both = 2 * weight.element_size()

    def update(name: str, sums: list[Any], **more: Any) -> Step:
        return lambda: getattr(kernels, f"update_{name}")(weight, sums, **common, **more)

    def perturb(*, gaussian: bool) -> Step:
        return lambda: kernels.perturb(out, weight, **key, gaussian=gaussian)

    def pair() -> None:
        kernels.perturb_pair(out, other, weight, **key, gaussian=False)

    one, window = [terms(1)], [terms(1) for _ in range(many)]
    return {
        "copy": Sweep(lambda: out.copy_(weight), both, None),
        "perturb": Sweep(perturb(gaussian=False), both, "perturb bfloat16"),
        "perturb Gaussian": Sweep(perturb(gaussian=True), both, "perturb bfloat16 Gaussian"),
        "perturb_pair": Sweep(pair, both * 3 // 2, "perturb_pair float32 to bfloat16"),
        "sum of 1": Sweep(update("dense", one), both, "add_directions bfloat16"),
        "sum of 1 Gaussian": Sweep(
            update("dense", [terms(1, gaussian=True)]), both, "add_directions bfloat16 Gaussian"
        ),
        "sum of 1 rank-1": Sweep(update("rank1", one), both, "add_directions bfloat16 rank-1"),
        f"sum of {many} rank-1": Sweep(
            update("rank1", [terms(many)]), both, "add_directions bfloat16 rank-1", many
        ),
        "R-AdaZO, stored moments": Sweep(
            update("dense", one, adam=ADAM, moments=moments), both + 16, "radazo_full bfloat16"
        ),
        f"R-AdaZO, window of {many}": Sweep(
            update("dense", window, adam=ADAM), both, "radazo_window bfloat16", many
        ),
        f"R-AdaZO, window of {many} rank-1": Sweep(
            update("rank1", window, adam=ADAM), both, "radazo_window bfloat16 rank-1", many
        ),
    }


def terms(count: int, *, gaussian: bool = False) -> Any:
    """The sum of some directions of one step."""
    return direction_sum(1, gaussian, [(2, k) for k in range(count)], [1e-9] * count)


if __name__ == "__main__":
    main()
