"""The learning rate as a function of the step."""

from __future__ import annotations

import math
from typing import Literal

import numpy as np


def learning_rate(
    step: int,
    *,
    lr: float,
    steps: int,
    schedule: Literal["constant", "linear", "cosine"],
    warmup_steps: int,
) -> float:
    """Rate of 1-based `step` out of `steps`: a linear warm-up, then the schedule down to zero.

    Rounded to float32, because the journal stores it: a cosine may differ in the last bit between
    machines, a journal may not.
    """
    if step <= warmup_steps:
        factor = step / warmup_steps
    else:
        progress = (step - 1 - warmup_steps) / max(1, steps - warmup_steps)
        factor = {
            "constant": 1.0,
            "linear": 1.0 - progress,
            "cosine": 0.5 * (1.0 + math.cos(math.pi * progress)),
        }[schedule]
    return float(str(np.float32(lr * factor)))
