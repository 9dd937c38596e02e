"""The table that turns 16 random bits into a Gaussian value.

Box-Muller is not reproducible (float32 results differ between numba, numpy and torch); a lookup is.
Entry i is the standard normal quantile of (i + 1/2) / 65536, rounded to a multiple of 2**-21. On that
grid every entry is a float32 and an integer of at most 24 bits, so a sum of up to 2**15 directions
with 14-bit coefficients is exact in float64 in any order.
"""

from __future__ import annotations

import hashlib
from functools import cache
from statistics import NormalDist

import numpy as np
import numpy.typing as npt

GRID = 2.0**-21
SHA256 = "f9efeb882dbc527aca68accd3c2082eb5be164415f41cc837a28a656c7418d14"


@cache
def table() -> npt.NDArray[np.float32]:
    """The 65,536 values as float32, read-only. Raises RuntimeError if the platform rounds otherwise."""
    quantile = NormalDist().inv_cdf  # Wichura's AS241, accurate to 1e-16
    upper = np.array([quantile((i + 0.5) / 65536) for i in range(32768, 65536)])
    upper = np.rint(upper / GRID) * GRID
    values = np.concatenate([-upper[::-1], upper]).astype(np.float32)
    digest = hashlib.sha256(values.astype("<f4").tobytes()).hexdigest()
    if digest != SHA256:
        raise RuntimeError(f"the Gaussian table has sha256 {digest}, expected {SHA256}")
    values.flags.writeable = False
    return values
