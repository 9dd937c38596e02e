"""The keys in words, `zoft schema`, and the generated pages."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Literal

import pytest
from pydantic import Field
from support import ROOT

from zoft.cli.main import main
from zoft.recipe.docs import json_schema, reference
from zoft.recipe.docs.json_schema import editor_schema
from zoft.recipe.docs.reference import entries
from zoft.recipe.fields import fields
from zoft.recipe.sections.base import Auto, Counted, Section


def test_every_key_has_a_type_and_a_meaning() -> None:
    found = entries()
    assert {entry.key for entry in found} >= {".".join(key) for key in fields() if "0" not in key}
    assert all(entry.description and entry.type != "any value" for entry in found)
    assert len({entry.key for entry in found}) == len(found)


class Inner(Section):
    path: str = Field(description="Where.")
    weight: float = Field(1.0, description="How often.")


class Outer(Section):
    many: list[Inner] = Field([], description="Several.")
    either: Inner | list[Inner] = Field(description="One or several.")
    some: list[Literal["a", "b"]] = Field(["a"], description="Some of them.")
    number: Counted | Auto | None = Field(None, description="A number.")
    table: dict[str, list[str]] = Field({}, description="A table.")


def test_lists_of_sections_and_unions(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(json_schema, "Recipe", Outer)
    assert [(e.key, e.type, e.default) for e in entries()] == [
        ("many", "list, each section", "[]"),
        ("many.0.path", "text", None),
        ("many.0.weight", "number", "1"),
        ("either", "section, or list, each section", None),
        ("either.path", "text", None),
        ("either.weight", "number", "1"),
        ("some", "list, each a or b", '["a"]'),
        ("number", "whole number at least 1, or auto, or empty", "empty"),
        ("table", "mapping of text to list, each text", "{}"),
    ]
    jsonschema = pytest.importorskip("jsonschema")
    validator = jsonschema.Draft202012Validator(editor_schema())
    one = {"path": "${env:A}", "weight": "${env:B}"}
    assert validator.is_valid({"either": one, "many": [one], "some": ["${env:C}", "b"]})
    assert validator.is_valid({"either": [one], "number": "${env:A}"})
    assert not validator.is_valid({"either": [{"weight": 1}]})
    assert not validator.is_valid({"either": one, "some": ["c"]})


def test_a_key_that_rules_describe_apart_says_what_it_is_to_each() -> None:
    [sides] = [entry for entry in entries() if entry.key == "optimizer.sides"]
    assert sides.description.startswith("2: central difference")
    assert sides.description.endswith("fzoo: 1 by default, as in the paper.")
    assert sides.description.count("central") == 1


def test_one_key_is_explained(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["schema", "--field", "optimizer.perturbation"]) == 0
    out = capsys.readouterr().out
    assert out.splitlines()[:3] == [
        "optimizer.perturbation",
        "  type     number above 0, or auto",
        "  default  auto",
    ]
    assert "How far a probe moves each weight" in out
    assert max(map(len, out.splitlines())) <= 80


def test_a_section_lists_its_keys(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["schema", "--field", "checkpoint"]) == 0
    assert "checkpoint.keep_last  default 2" in capsys.readouterr().out
    assert main(["schema", "--field", "model.name"]) == 0
    assert "default  none, the recipe must give it" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("key", "hint"),
    [
        ("optimizer.perturbaton", "did you mean optimizer.perturbation?"),
        ("lr", "it belongs at optimizer.lr"),
        ("learning_rate", "zoft calls it optimizer.lr"),
        ("", "expected one of"),
    ],
)
def test_an_unknown_key_is_answered(
    key: str, hint: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["schema", "--field", key]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert hint in err
    assert err.count("\n") == 1


def test_the_whole_schema_is_printed(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["schema"]) == 0
    assert json.loads(capsys.readouterr().out) == editor_schema()


def test_the_generated_pages_are_of_this_schema() -> None:
    script = [sys.executable, str(ROOT / "scripts" / "docs.py"), "--check"]
    done = subprocess.run(script, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, "")


def test_the_reference_uses_no_section_twice() -> None:
    headings = [
        line
        for line in (ROOT / "docs" / "recipe-reference.md").read_text().splitlines()
        if line.startswith("## ")
    ]
    sections = [entry.key for entry in reference.entries() if entry.is_section]
    assert headings == ["## Top level", *(f"## {section}" for section in sections)]


def test_the_broken_recipe_of_the_docs_is_answered_as_they_say(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    page = (ROOT / "docs" / "recipes.md").read_text()
    recipe = page.split("```yaml\n")[2].split("```")[0]
    said = [line.strip() for line in page.splitlines() if line.startswith("    error: ")]
    monkeypatch.chdir(tmp_path)
    Path("broken.yaml").write_text(recipe)
    assert main(["train", "broken.yaml", "train.lr=3"]) == 2
    assert capsys.readouterr().err.splitlines() == said
