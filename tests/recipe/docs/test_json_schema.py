"""The JSON schema takes what zoft takes and refuses what it refuses, as far as a schema can tell."""

from __future__ import annotations

import copy
import json
from typing import Any

import pytest
from ruamel.yaml import YAML

from zoft.recipe import packaged
from zoft.recipe.docs.json_schema import editor_schema
from zoft.recipe.load import dump_recipe, load_recipe

jsonschema = pytest.importorskip("jsonschema")


@pytest.fixture(scope="module")
def validator() -> Any:
    schema = editor_schema()
    jsonschema.Draft202012Validator.check_schema(schema)
    return jsonschema.Draft202012Validator(schema)


def values(text: str) -> Any:
    """As an editor sees them: keys are text."""
    return json.loads(json.dumps(YAML(typ="safe", pure=True).load(text)))


@pytest.fixture
def quickstart() -> Any:
    path = packaged.path_of("quickstart")
    assert path is not None
    return values(path.read_text())


@pytest.mark.parametrize("name", packaged.names())
def test_packaged_recipes_are_accepted(name: str, validator: Any) -> None:
    path = packaged.path_of(name)
    assert path is not None
    validator.validate(values(path.read_text()))
    validator.validate(values(dump_recipe(load_recipe(name))))


@pytest.mark.parametrize(
    ("key", "value", "accepted"),
    [
        ("optimizer.lr", "auto", True),
        ("optimizer.lr", "${env:LR:-1e-4}", True),
        ("optimizer.lr", "fast", False),
        ("optimizer.lr", 0, False),
        ("optimizer.betas", [0.9, "${env:BETA}"], True),
        ("optimizer.betas", [0.9, 0.9, 0.9], False),
        ("optimizer.name", "adam", False),
        ("optimizer.nmae", "mezo", False),
        ("optimizer", None, True),
        ("data", None, False),
        ("data.eval", None, True),
        ("memory.device_budget", "8GiB", True),
        ("memory.device_budget", 8_000_000_000, True),
        ("memory.device_budget", "8 bytes or so", False),
        ("memory.device_budget", 8, False),
        ("tune.target_modules", ["q_proj"], True),
        ("tune.target_modules", "q_proj", False),
        ("tune.include", ["${env:GLOB}"], True),
        ("train.steps", 1.5, False),
        ("logging", {"every": True}, False),
        ("output_dir", None, True),
    ],
)
def test_single_values(
    key: str, value: object, accepted: bool, validator: Any, quickstart: Any
) -> None:
    changed = copy.deepcopy(quickstart)
    *sections, name = key.split(".")
    place = changed
    for section in sections:
        place = place.setdefault(section, {})
    place[name] = value
    assert validator.is_valid(changed) == accepted
