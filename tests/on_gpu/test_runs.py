"""On a GPU: a resumed run ends in the bytes of a whole one; a journal leads to them on any device."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from support import ROOT, small
from support.failures import killed_after

from zoft.cli.main import main
from zoft.training.run import train

pytestmark = pytest.mark.gpu
WEIGHTS = {"full": "model.safetensors", "lora": "adapter_model.safetensors"}
BY_METHOD = pytest.mark.parametrize("method", WEIGHTS)
SHORT = ["train.steps=8", "checkpoint.every=3", "~data.eval"]


@BY_METHOD
def test_a_resumed_run_ends_in_the_bytes_of_a_whole_one(
    method: str, device: torch.device, tmp_path: Path
) -> None:
    recipe = str(small.write(tmp_path, method))
    changes = [*SHORT, f"device={device}"]
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    train(recipe, changes, output_dir=str(whole))
    with killed_after(5):
        train(recipe, changes, output_dir=str(cut))
    train(recipe, changes, output_dir=str(cut), resume="auto")
    for file in ("journal.jsonl", f"final/{WEIGHTS[method]}"):
        assert (cut / file).read_bytes() == (whole / file).read_bytes(), file


@BY_METHOD
def test_a_journal_of_the_gpu_replays_on_the_cpu(
    method: str, gpu: torch.device, tmp_path: Path
) -> None:
    run, rebuilt = tmp_path / "run", tmp_path / "rebuilt"
    train(str(small.write(tmp_path, method)), [*SHORT, f"device={gpu}"])
    hidden = dict.fromkeys(("CUDA_VISIBLE_DEVICES", "HIP_VISIBLE_DEVICES"), "")
    command = [sys.executable, "-m", "zoft", "replay", str(run), "--out", str(rebuilt)]
    subprocess.run(command, check=True, env={**os.environ, **hidden, "PYTHONPATH": str(ROOT)})
    assert same(run / "final", rebuilt, method)


@BY_METHOD
@pytest.mark.usefixtures("device")
def test_a_journal_of_the_cpu_replays_on_the_gpu(method: str, tmp_path: Path) -> None:
    run, rebuilt = tmp_path / "run", tmp_path / "rebuilt"
    train(str(small.write(tmp_path, method)), [*SHORT, "device=cpu"])
    # A replay takes the GPU if there is one.
    assert main(["replay", str(run), "--out", str(rebuilt)]) == 0
    assert same(run / "final", rebuilt, method)


def same(ours: Path, theirs: Path, method: str) -> bool:
    name = WEIGHTS[method]
    return (ours / name).read_bytes() == (theirs / name).read_bytes()
