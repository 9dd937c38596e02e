"""Triton's sweeps against the reference, on a CPU, through Triton's interpreter.

The interpreter must be chosen before triton is imported, for a whole process: `triton_interpreted.py`
holds the tests, and one process of its own runs them.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from support import ROOT


def test_every_sweep_has_the_bits_of_the_reference() -> None:
    file = Path(__file__).with_name("triton_interpreted.py")
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-x", "-p", "no:cacheprovider", str(file)],
        env={**os.environ, "TRITON_INTERPRET": "1"},
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_a_cpu_never_loads_these_kernels() -> None:
    code = (
        "import sys, torch, zoft.training.run; from zoft.engine.kernels.dispatch import kernels_for;"
        "kernels_for(torch.device('cpu')); print([x for x in sys.modules if 'kernels.triton' in x])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
