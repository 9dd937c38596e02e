"""Long runs on the real model: `bash scripts/campaign.sh`, after the quickstart fetched the demo."""

from __future__ import annotations

import time
from pathlib import Path

import pytest
from support import kills

ROOT = Path(__file__).parent.parent
RECIPES = {
    "full": ("quickstart.yaml", []),
    "lora": ("quickstart-lora.yaml", []),
    "streamed": ("quickstart.yaml", ["model.residency=disk"]),
}


@pytest.mark.campaign
@pytest.mark.parametrize("method", RECIPES)
def test_ten_kills_of_the_real_model_end_in_the_same_bytes(
    method: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
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


@pytest.mark.campaign
def test_twenty_sigterms_to_the_real_model_end_in_the_same_bytes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """While it imports, reads data, looks, steps, scores or writes a checkpoint."""
    monkeypatch.chdir(ROOT)
    recipe = str(Path("recipes") / "quickstart.yaml")
    changes = [
        "train.steps=120", "train.batch_size=4", "checkpoint.every=10", "eval.every=10",
        "data.train.limit=500", "data.eval.limit=64",
    ]  # fmt: skip
    begun = time.perf_counter()
    whole = kills.uninterrupted(recipe, changes, tmp_path / "whole")
    seconds = time.perf_counter() - begun
    found, stops = kills.stopped(
        recipe, changes, tmp_path / "stopped", seconds=seconds / 3, times=20
    )
    slowest = max(delay for _, delay in stops)
    print(
        f"SIGTERM: codes {[code for code, _ in stops]}, slowest {slowest:.1f} s; {whole}, {found}"
    )
    assert [code for code, _ in stops] == [143] * 20
    assert slowest < 5
    assert found == whole
