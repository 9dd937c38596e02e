"""The sweeps on a GPU, bit-equal to `reference.py` (`project`: up to the order of its sums).

Imported only for a tensor on a GPU, and by tests, with TRITON_INTERPRET=1 on a CPU. The kernels stand
in device.py (Philox, signs, rounding), probe.py, signs.py, products.py and update.py. Each call is one
launch; an update along rank-1 directions is two. Values that change from step to step are arguments
that Triton does not specialise on.

What keeps the bits: enable_fp_fusion=False wherever a kernel is compiled, the _rn forms of division
and square root, and pointers whose alignment is not looked at, which would change who holds what.
"""

from __future__ import annotations

from zoft.engine.kernels.triton.probe import (
    perturb,
    perturb_each,
    perturb_pair,
    perturb_rows,
)
from zoft.engine.kernels.triton.products import prefill, project, spread, widen
from zoft.engine.kernels.triton.signs import signs
from zoft.engine.kernels.triton.update import add_directions, radazo_full, radazo_window

__all__ = [
    "add_directions",
    "perturb",
    "perturb_each",
    "perturb_pair",
    "perturb_rows",
    "prefill",
    "project",
    "radazo_full",
    "radazo_window",
    "signs",
    "spread",
    "widen",
]
