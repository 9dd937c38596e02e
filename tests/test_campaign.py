"""Long runs on the real model: `bash scripts/campaign.sh`, after the quickstart fetched the demo."""

from __future__ import annotations

from pathlib import Path

import kills
import pytest

ROOT = Path(__file__).parent.parent
RECIPES = {
    "full": ("quickstart.yaml", []),
    "lora": ("quickstart-lora.yaml", []),
    "streamed": ("quickstart.yaml", ["model.residency=disk"]),
}


@pytest.mark.campaign
@pytest.mark.parametrize("method", RECIPES)
def test_ten_kills_of_the_real_model_end_in_the_same_bytes(method, tmp_path, monkeypatch):
    monkeypatch.chdir(ROOT)
    name, where = RECIPES[method]
    recipe = str(Path("recipes") / name)
    changes = [
        "train.steps=60", "train.batch_size=4", "checkpoint.every=20", "~data.eval",
        "data.train.limit=500",
    ]  # fmt: skip
    whole = kills.uninterrupted(recipe, changes, tmp_path / "whole")
    found, moments = kills.killed(
        recipe, [*changes, *where], tmp_path / "killed", steps=60, times=10
    )
    print(f"{method}: killed after steps {moments}; sha256 {whole} uninterrupted, {found} resumed")
    assert len(moments) == 10
    assert found == whole
