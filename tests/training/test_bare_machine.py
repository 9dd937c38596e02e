"""A machine with torch, transformers and peft, and not all that zoft names: training needs no more."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from support import ROOT, small

from zoft.cli.main import main
from zoft.training import start

# numba compiles the kernels of a CPU: here the literal ones take its place, as Triton's do on a GPU.
TRAIN = """
import sys
sys.modules.update(dict.fromkeys(sys.argv[2].split()))  # None: importing it raises ImportError
from zoft.engine.kernels import dispatch, reference
dispatch._kernels = lambda device: reference
from zoft.cli.main import main
sys.exit(main(["train", sys.argv[1], "train.steps=2"]))
"""
LEFT_OUT = "datasets pyarrow pandas numba llvmlite matplotlib gguf wandb bitsandbytes torchao"


def test_training_on_local_rows_does_without_what_is_large(tmp_path: Path) -> None:
    recipe = small.write(tmp_path, "lora")
    done = subprocess.run(
        [sys.executable, "-c", TRAIN, str(recipe), LEFT_OUT],
        capture_output=True, text=True, check=False, cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "run" / "final").is_dir()
    assert "no loss.png: ModuleNotFoundError" in done.stdout + done.stderr


def test_what_cannot_do_without_names_the_package(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    table = tmp_path / "rows.parquet"
    table.write_bytes(b"PAR1")
    assert main(["train", str(small.write(tmp_path)), f"data.train.path={table}"]) == 4
    assert "error: this needs pyarrow: pip install pyarrow" in capsys.readouterr().err


def test_a_run_names_the_versions_of_what_is_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    assert "datasets" in start.versions()
    monkeypatch.setitem(sys.modules, "datasets", None)
    assert start.versions().keys() >= {"zoft", "torch"}
    assert "datasets" not in start.versions()
