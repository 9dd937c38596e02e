"""What others are told instead of this machine's paths, without a server."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from support import small

from zoft.recipe.load import load_recipe
from zoft.recipe.sections.data import DataSource
from zoft.sharing.base_model import Base, is_local
from zoft.sharing.hub.redaction import shared_config, shared_header, shared_recipe, without_places

BASE = Base("you/base", "c0ffee")


def test_a_recipe_loses_its_paths_and_stays_a_recipe(tmp_path: Path) -> None:
    source = tmp_path / "r.yaml"
    source.write_text(
        small.RECIPE.format(model=tmp_path, folder=tmp_path, method="lora", lr="1e-3")
    )
    hub = ("hub.repo_id=you/mine", "hub.push=end", "data.test={path: glue, name: sst2}")
    recipe = load_recipe(source, hub)
    text = shared_recipe(recipe, BASE)
    assert str(tmp_path) not in text
    source.write_text(text)
    read = load_recipe(source)
    assert (read.model.name, read.model.revision) == ("you/base", "c0ffee")
    assert read.data.train == DataSource(path="train.jsonl")
    assert read.output_dir == "runs/run"
    assert read.data.test == recipe.data.test  # a Hub set keeps its name
    assert read.hub.push == "never"
    assert read.optimizer == recipe.optimizer


def test_a_config_names_the_base_by_its_id(tmp_path: Path) -> None:
    adapter = {"base_model_name_or_path": str(tmp_path), "revision": None, "r": 8}
    expected = {"base_model_name_or_path": "you/base", "revision": "c0ffee", "r": 8}
    assert json.loads(shared_config(json.dumps(adapter), BASE)) == expected
    model = {"_name_or_path": str(tmp_path), "files": [f"{tmp_path}"], "separator": "/"}
    shared = {"_name_or_path": "you/base", "files": [tmp_path.name], "separator": "/"}
    assert json.loads(shared_config(json.dumps(model), BASE)) == shared
    plain = '{"hidden_size":   48}'
    assert shared_config(plain, BASE) is plain


def test_a_journal_names_the_base_by_its_id() -> None:
    header = {"format": "zoft-journal", "base": {"name": "/x/y", "revision": None, "sha256": "ab"}}
    named = {"name": "you/base", "revision": "c0ffee", "sha256": "ab"}
    assert shared_header(header, BASE) == {"format": "zoft-journal", "base": named}


def test_folders_are_cut_off_paths() -> None:
    places = [Path("/home/me"), Path("/home/me/runs/a")]
    text = '{"path": "/home/me/runs/a/checkpoint-5", "home": "/home/me", "b": "/home/me/b"}'
    assert without_places(text, places) == '{"path": "checkpoint-5", "home": "me", "b": "b"}'


def test_what_is_local(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "folder").mkdir()
    for name in ("./x", "/x", "~/x", "a/b/c", "x.gguf", "x.jsonl", "folder"):
        assert is_local(name), name
    for name in ("gpt2", "org/name", "org/name-1.5"):
        assert not is_local(name), name
