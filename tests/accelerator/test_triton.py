"""Whole runs whose sweeps are the Triton kernels, in a process whose Triton interprets them."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from support import ROOT


def test_a_run_on_triton_kernels_is_one_on_the_cpus() -> None:
    file = Path(__file__).with_name("triton_interpreted.py")
    done = subprocess.run(
        [
            sys.executable,
            "-m",
            "pytest",
            "-x",
            "-p",
            "no:cacheprovider",
            "-p",
            "no:xdist",
            str(file),
        ],
        env={**os.environ, "TRITON_INTERPRET": "1"},
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
