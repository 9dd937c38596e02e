"""Whole runs of an adapter on a quantised base: they learn, resume and are scored like any other."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from support import small

from zoft.inference.evaluate import evaluate
from zoft.training.run import train

WIDTHS = {"hidden_size": 64, "intermediate_size": 128, "head_dim": 16}


@pytest.mark.parametrize("kind", ["nf4", "int8"])
def test_a_run_on_a_quantised_base(
    tmp_path: Path, kind: str, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe = small.write(tmp_path, "lora", **WIDTHS)
    long = [f"model.quantization={kind}", "train.steps=30", "optimizer.directions=4"]
    train(str(recipe), long)
    whole = tmp_path / "run"
    metrics = [json.loads(line) for line in (whole / "metrics.jsonl").read_text().splitlines()]
    losses = [event["loss"] for event in metrics if event["event"] == "eval"]
    assert losses[-1] < losses[0] - 0.02
    assert "paired: true" in (whole / "resolved.yaml").read_text()
    manifest = json.loads((whole / "run.json").read_text())
    assert manifest["quantization"].split()[0] in ("bitsandbytes", "torchao")
    names = {path.name for path in (whole / "final").iterdir()}
    assert "adapter_model.safetensors" in names
    assert "model.safetensors" not in names

    capsys.readouterr()
    scores = evaluate(str(whole), str(recipe), long)
    assert scores["eval"]["loss"] == losses[-1]

    # The recipe's rate is constant: a run of 17 steps is the beginning of one of 30.
    other = str(tmp_path / "other")
    train(str(recipe), [*long, "train.steps=17"], output_dir=other)
    train(str(recipe), long, output_dir=other, resume="auto")
    for name in ("journal.jsonl", "final/adapter_model.safetensors"):
        assert (Path(other) / name).read_bytes() == (whole / name).read_bytes()
