from __future__ import annotations

from pathlib import Path

import pytest

from zoft.recipe import packaged


def test_the_quickstart_is_shipped() -> None:
    assert {"quickstart", "quickstart-lora"} <= set(packaged.names())
    path = packaged.path_of("quickstart")
    assert path is not None
    assert path.is_file()


@pytest.mark.parametrize("name", ["nope", "", "../pyproject", "quickstart.yaml"])
def test_other_names_are_not(name: str) -> None:
    assert packaged.path_of(name) is None


@pytest.mark.parametrize("name", packaged.names())
def test_each_says_in_one_line_what_it_does(name: str) -> None:
    assert 20 < len(packaged.summary(name)) < 100
    assert not packaged.summary(name).startswith("#")


def test_an_installed_package_carries_its_recipes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    installed = tmp_path / "zoft" / "packaged_recipes"
    installed.mkdir(parents=True)
    (installed / "mine.yaml").write_text("model: {}\n", encoding="utf-8")
    monkeypatch.setattr(packaged, "__file__", str(tmp_path / "zoft" / "recipe" / "packaged.py"))
    assert packaged.names() == ["mine"]
    assert packaged.summary("mine") == ""
