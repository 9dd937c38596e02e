"""`zoft eval` of what has no score."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from support import small

from zoft.errors import Diverged
from zoft.inference.evaluate import evaluate


def test_a_loss_that_is_not_finite_is_no_score(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe = small.write(tmp_path)
    file = tmp_path / "model/model.safetensors"
    tensors = load_file(file)
    tensors["model.norm.weight"][3] = torch.nan
    save_file(tensors, file, {"format": "pt"})
    with pytest.raises(Diverged, match=r"^the loss of eval is not finite: weights of .*/model "):
        evaluate(str(tmp_path / "model"), str(recipe))
    assert "eval: accuracy" in capsys.readouterr().out
