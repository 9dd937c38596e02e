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
from zoft.engine.kernels.triton.update import update_dense, update_rank1

__all__ = [
    "perturb",
    "perturb_each",
    "perturb_pair",
    "perturb_rows",
    "prefill",
    "project",
    "signs",
    "spread",
    "update_dense",
    "update_rank1",
    "widen",
]
