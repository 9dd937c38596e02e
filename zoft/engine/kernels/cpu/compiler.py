"""Whether the environment lets numba compile the kernels."""

from __future__ import annotations

import os

from zoft.errors import EnvironmentProblem


def require_compiler() -> None:
    """Raises EnvironmentProblem if numba's own settings keep it from working, or from compiling."""
    threads = os.environ.get("NUMBA_NUM_THREADS", "1")
    if not (threads.strip().isdecimal() and int(threads) > 0):
        raise EnvironmentProblem(
            f"NUMBA_NUM_THREADS={threads}: numba takes a whole number from 1 on; unset it (the threads "
            "of a run are OMP_NUM_THREADS)"
        )
    from numba import config  # it reads its variables as it is imported

    if config.DISABLE_JIT:
        raise EnvironmentProblem(
            "NUMBA_DISABLE_JIT is set: the kernels would not be compiled, and a step takes a hundred "
            "times as long; unset it"
        )
