"""Variables of numba that would crash a run or slow it a hundredfold; they are read by a new process."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from support import small


@pytest.mark.parametrize(
    ("variable", "value"),
    [
        ("NUMBA_DISABLE_JIT", "1"),
        ("NUMBA_NUM_THREADS", "0"),
        ("NUMBA_NUM_THREADS", "many"),
        ("NUMBA_NUM_THREADS", "-1"),
    ],
)
def test_numba_that_cannot_work_is_a_line_that_names_the_variable(
    variable: str, value: str, tmp_path: Path
) -> None:
    recipe = small.write(tmp_path, "lora")
    command = [sys.executable, "-m", "zoft", "train", str(recipe), "train.steps=1"]
    done = subprocess.run(
        command, env={**os.environ, variable: value}, capture_output=True, text=True
    )
    assert done.returncode == 4, done.stderr
    (line,) = (text for text in done.stderr.splitlines() if text.startswith("error: "))
    assert variable in line
    assert "unset it" in line
    assert not (tmp_path / "run").exists()
