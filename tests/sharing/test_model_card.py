"""Model cards without a run: what each kind of run has to say."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import ModelCard

from zoft.errors import RecipeError
from zoft.recipe.load import load_recipe
from zoft.recipe.schema import Recipe
from zoft.sharing.base_model import Base, base_here, base_of, license_beside
from zoft.sharing.model_card import card

RECIPE = """\
model: {name: org/base}
data:
  train: {path: org/set, split: train}
  eval: {path: org/set, name: plain, split: validation}
  test: {path: some/where/test.jsonl}
  format: text
train: {steps: 30}
output_dir: runs/mine
"""
FINAL = {"set": "test", "step": 30, "loss": 1.25, "rows": 7}
EVENTS = [
    {"event": "eval", "step": 0, "loss": 3.0, "rows": 1200},
    {"event": "eval", "step": 10, "loss": None, "rows": 1200},
    {"event": "eval", "step": 30, "loss": 2.0, "rows": 1200},
]


@pytest.fixture
def recipe(tmp_path: Path) -> Recipe:
    path = tmp_path / "mine.yaml"
    path.write_text(RECIPE)
    return load_recipe(path)


def test_a_language_model_has_losses_and_hub_sets(recipe: Recipe) -> None:
    manifest = {"final": FINAL, "peak_memory_bytes": 3 << 30, "seconds": 4.0}
    base = Base("org/base", "c0ffee", {"license": "other", "license_name": "open"})
    found = ModelCard(card(recipe, "a: 1", manifest, EVENTS, base, adapter=False, repo_id="me/it"))
    data: Any = found.data
    assert (data.base_model, data.base_model_relation) == ("org/base", "finetune")
    assert (data.license, data.license_name) == ("other", "open")
    assert data.datasets == ["org/set"]
    shown = {(r.dataset_type, r.dataset_split, r.metric_name, r.metric_value)
             for r in data.eval_results}  # fmt: skip
    assert shown == {
        ("org/set", "validation", "loss, after 30 steps", 2.0),
        ("org/set", "validation", "loss, zero-shot", 3.0),
        ("local", "test", "loss, after 30 steps", 1.25),
    }
    assert "| eval: set | 1,200 | loss 3.0000 | loss 2.0000 |" in found.text
    assert "| test: test.jsonl | 7 | not scored | loss 1.2500 |" in found.text
    assert "3.00 GiB" in found.text
    assert "at `c0ffee`" in found.text


def test_in_the_middle_of_a_run(recipe: Recipe) -> None:
    text = card(recipe, "a: 1", {"final": FINAL}, EVENTS, Base("org/base"), adapter=True, step=10)
    assert "| eval: set | 1,200 | loss 3.0000 | loss not finite |" in text
    assert "test.jsonl |" not in text
    assert "10 of 30" in text
    assert "# mine" in text
    assert 'from_pretrained("PATH/TO/THIS/FOLDER")' in text


def test_a_journal_is_no_model(recipe: Recipe) -> None:
    base = Base("org/base")
    text = card(recipe, "a: 1", {}, [], base, adapter=False, repo_id="me/it", journal_only=True)
    assert "No set was scored." in text
    assert "zoft replay me/it" in text
    assert "from_pretrained" not in text


def test_a_base_has_its_id_or_none(recipe: Recipe, tmp_path: Path) -> None:
    assert base_of(recipe, {"revision": "abc"}) == Base("org/base", "abc")
    local = recipe.model_copy(
        update={"model": recipe.model.model_copy(update={"name": str(tmp_path)})}
    )
    with pytest.raises(RecipeError, match=r"hub\.base_model=USER/BASE"):
        base_of(local, {})
    (tmp_path / "README.md").write_text("---\nlicense: mit\n---\n")
    assert base_here(local, {}) == Base(None, None, {"license": "mit"})
    hub = local.hub.model_copy(update={"base_model": "me/base@v1"})
    assert base_of(local.model_copy(update={"hub": hub}), {}) == Base("me/base", "v1")


@pytest.mark.parametrize("text", [None, "no front matter", "---\n: [\n---\n"])
def test_a_license_that_nobody_names_is_none(tmp_path: Path, text: str | None) -> None:
    if text is not None:
        (tmp_path / "README.md").write_text(text)
    assert license_beside(tmp_path) == {}
