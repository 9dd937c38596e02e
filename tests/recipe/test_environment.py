from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from zoft.errors import RecipeError
from zoft.recipe.environment import escaped, expand
from zoft.recipe.load import dump_recipe, load_recipe, recipe_text
from zoft.recipe.sections.data import DataSource

HERE = {"LR": "1e-4", "NAME": "some/model", "NUMBER": "3", "EMPTY": "", "LIST": "[q_proj, 3]"}
RECIPE = """\
model:
  name: ${env:NAME}
data:
  train:
    path: ${env:DATA:-data}/train.jsonl
  template: "{text} cost $5"
  labels: {1: "$${env:NAME}", 0: bad}
optimizer:
  lr: ${env:LR}
"""


def expanded(text: str, *key: str) -> Any:
    """The value that `text` becomes at a key."""
    node: Any = text
    for part in reversed(key):
        node = {part: node}
    values, problems = expand(node, HERE)
    assert problems == []
    for part in key:
        values = values[part]
    return values


@pytest.mark.parametrize(
    ("key", "text", "value"),
    [
        ("optimizer.lr", "${env:LR}", 1e-4),
        ("optimizer.lr", "2${env:NO:-e-3}", 2e-3),
        ("train.steps", "${env:NUMBER}${env:NUMBER}", 33),
        ("optimizer.paired", "${env:NO:-true}", True),
        ("tune.target_modules", "${env:LIST}", ["q_proj", 3]),
        ("optimizer.betas", "[0.9, ${env:NO:-0.5}]", [0.9, 0.5]),
        ("train.steps", "${env:EMPTY:-7}", 7),
        ("train.steps", "${env:EMPTY}", None),
        # Where the key holds text it stays text.
        ("model.name", "${env:NUMBER}", "3"),
        ("model.name", "~/${env:NAME}-${env:NO:-}", "~/some/model-"),
        ("data.template", "{text} ${env:NUMBER}", "{text} 3"),
        ("data.labels.0", "${env:NO:-true}", "true"),
        # What is no reference.
        ("model.name", "$HOME ${HOME} {env:LR} $5 $$", "$HOME ${HOME} {env:LR} $5 $$"),
        ("optimizer.lr", "$${env:LR}", "${env:LR}"),
        ("model.name", "$$${env:LR}${env:LR}", "$${env:LR}1e-4"),
    ],
)
def test_values(key: str, text: str, value: object) -> None:
    assert expanded(text, *key.split(".")) == value


def test_lists_of_text_stay_text() -> None:
    values, problems = expand({"tune": {"include": ["${env:NUMBER}", 4]}}, HERE)
    assert (values, problems) == ({"tune": {"include": ["3", 4]}}, [])


@pytest.mark.parametrize(
    ("text", "what"),
    [
        ("${env:NO}", "the environment variable NO is not set; set it, or write a default"),
        ("${env:}", "cut off or has no name; write ${env:NAME}"),
        ("${env:NAME", "cut off"),
        ("${env:3}", "cut off or has no name"),
        ("${env:NAME:=x}", "cut off"),
        ("${oc.env:NAME}", "here it is called env"),
        ("${env:HF_TOKEN}", "looks like a secret"),
        ("${env:OPENAI_API_KEY:-x}", "looks like a secret"),
        ("${env:db_password}", "looks like a secret"),
    ],
)
def test_what_cannot_be_replaced_stays_and_is_said(text: str, what: str) -> None:
    values, ((key, problem),) = expand({"a": {"b": text}}, HERE)
    assert values == {"a": {"b": text}}
    assert key == ("a", "b")
    assert what in problem


def test_names_that_only_resemble_secrets_are_taken() -> None:
    for name in ("TOKENIZER", "MAX_TOKENS", "MONKEY", "KEYS_FILE"):
        assert expand(f"${{env:{name}}}", {name: "3"}) == (3, [])


def test_escaped_text_comes_back() -> None:
    for text in ("${env:A}", "$${env:A}", "${env:", "$", "a ${oc.env:B} c", "{env:A}"):
        assert expand({"model": {"name": escaped(text)}}, {}) == ({"model": {"name": text}}, [])


def test_a_recipe_with_references(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "r.yaml"
    path.write_text(RECIPE)
    for name, value in HERE.items():
        monkeypatch.setenv(name, value)
    recipe = load_recipe(path, ["train.steps=${env:NUMBER}", "seed=${env:SEED:-11}"])
    assert (recipe.model.name, recipe.optimizer.lr) == ("some/model", 1e-4)
    assert (recipe.train.steps, recipe.seed) == (3, 11)
    assert recipe.data.train == DataSource(path="data/train.jsonl")
    assert recipe.data.template == "{text} cost $5"
    assert recipe.data.labels == {"1": "${env:NAME}", "0": "bad"}
    # As written in recipe.yaml, as it is in resolved.yaml, which no variable changes any more.
    assert recipe_text(path) == RECIPE
    path.write_text(dump_recipe(recipe))
    monkeypatch.delenv("NAME")
    assert load_recipe(path) == recipe


def test_each_problem_has_its_place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("LR", raising=False)
    monkeypatch.setenv("NAME", "some/model")
    Path("r.yaml").write_text(RECIPE + "  window: ${env:NAME}\n  esp: 3\n")
    with pytest.raises(RecipeError) as caught:
        load_recipe("r.yaml", ["train.steps=${env:STEPS}"])
    assert str(caught.value).splitlines() == [
        "r.yaml:9:3: optimizer.lr: the environment variable LR is not set; set it, or write a "
        "default: ${env:LR:-...}",
        "r.yaml:10:3: optimizer.window: found 'some/model'; expected a whole number or auto",
        "r.yaml:11:3: optimizer.esp: no such key; did you mean optimizer.eps?",
        "override 'train.steps=${env:STEPS}': train.steps: the environment variable STEPS is not "
        "set; set it, or write a default: ${env:STEPS:-...}",
    ]
