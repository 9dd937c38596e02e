"""Triton's sweeps against the reference, on a CPU, through Triton's interpreter.

The interpreter must be chosen before triton is imported, for a whole process: `triton_interpreted.py`
holds the tests, and one process of its own runs them.
"""

from __future__ import annotations

import os
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import pytest
from packaging.version import Version
from support import ROOT

# Loops to a bound that is no constant: numpy 2.4 raises TypeError where older ones warn.
NO_LOOPS = Version(version("triton")) < Version("3.7") and Version(version("numpy")) >= Version(
    "2.4"
)


@pytest.mark.skipif(NO_LOOPS, reason="the interpreter of Triton 3.6 takes numpy below 2.4")
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
