from __future__ import annotations

from typing import Any

import pytest

from zoft.recipe.overrides import apply, parse


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("seed=3", {"seed": 3, "train": {"steps": 5}}),
        ("train.steps=7", {"train": {"steps": 7}}),
        ("train.batch_size=2", {"train": {"steps": 5, "batch_size": 2}}),
        ("data.train.path=a=b", {"train": {"steps": 5}, "data": {"train": {"path": "a=b"}}}),
        ("train=", {"train": None}),
        ("~train.steps", {"train": {}}),
        ("~train", {}),
    ],
)
def test_sets_and_deletes(override: str, expected: dict[str, Any]) -> None:
    values = {"train": {"steps": 5}}
    assert apply(values, override)[0] == expected
    assert values == {"train": {"steps": 5}}, "the given values must not change"


def test_the_topmost_new_key_is_named() -> None:
    values = {"data": {"train": {"path": "t"}}, "eval": None}
    assert apply(values, "data.train.path=x")[1] == ("data", "train", "path")
    assert apply(values, "data.test.path=x")[1] == ("data", "test")
    assert apply(values, "eval.every=1")[1] == ("eval",)


def test_entries_of_a_list_are_named_by_their_number() -> None:
    values = {"data": {"train": [{"path": "a"}, {"path": "b"}]}}
    changed, key = apply(values, "data.train.1.path=c")
    assert changed == {"data": {"train": [{"path": "a"}, {"path": "c"}]}}
    assert key == ("data", "train", "1", "path")
    added, key = apply(values, "data.train.2.path=c")
    assert added["data"]["train"][2] == {"path": "c"}
    assert key == ("data", "train", "2")
    assert apply(values, "~data.train.0")[0] == {"data": {"train": [{"path": "b"}]}}
    assert apply(changed, "~data.train.0.path")[0]["data"]["train"][0] == {}
    assert values == {"data": {"train": [{"path": "a"}, {"path": "b"}]}}
    for override, what in (
        ("data.train.path=x", r"data.train is a list; name .* data\.train\.0\.path"),
        ("data.train.3.path=x", "data.train has 2 entries"),
        ("~data.train.2", "data.train has 2 entries"),
    ):
        with pytest.raises(ValueError, match=what):
            apply(values, override)


def test_a_shared_anchor_is_changed_in_one_place_only() -> None:
    shared = {"path": "x"}
    values, _ = apply({"eval": shared, "test": shared}, "test.path=y")
    assert values == {"eval": {"path": "x"}, "test": {"path": "y"}}


def test_label_values_keep_their_place() -> None:
    values, _ = apply({"data": {"labels": {0: "bad", 1: "good"}}}, "data.labels.0=poor")
    assert values["data"]["labels"] == {0: "poor", 1: "good"}


@pytest.mark.parametrize(
    ("override", "what"),
    [
        ("train.steps", "expected section.key=value"),
        ("=3", "expected section.key=value"),
        ("train..steps=3", "expected section.key=value"),
        ("~train.steps=3", "expected section.key=value"),
        ("", "expected section.key=value"),
        ("train.steps.x=3", "train.steps has no keys"),
        ("~train.lr", "does not set train.lr"),
        ("~eval.every", "does not set eval"),
    ],
)
def test_refused(override: str, what: str) -> None:
    with pytest.raises(ValueError, match=what):
        apply({"train": {"steps": 5}}, override)


@pytest.mark.parametrize(
    ("override", "what"),
    [
        ('data.labels={0: a, "0": b}', r"data\.labels\.0: written twice"),
        ("optimizer={lr: 1e-3, lr: 1e-4}", r"optimizer\.lr: written twice"),
        ("data.train=[{path: a, limit: 1, limit: 2}]", r"data\.train\.limit: written twice"),
    ],
)
def test_a_key_that_is_written_twice_is_refused(override: str, what: str) -> None:
    with pytest.raises(ValueError, match=what):
        apply({}, override)


def test_a_text_may_look_like_a_section_with_a_key_twice() -> None:
    assert parse("{a: 1, a: 2}", ("data", "template")) == "{a: 1, a: 2}"


@pytest.mark.parametrize(
    ("key", "text", "value"),
    [
        ("optimizer.lr", "1e-6", 1e-6),
        ("optimizer.betas", "[0.9, 0.99]", [0.9, 0.99]),
        ("tune.target_modules", "[q_proj, v_proj]", ["q_proj", "v_proj"]),
        ("tune.include", "['*']", ["*"]),
        ("optimizer.fold_momentum", "no", "no"),
        ("data.labels", "{0: bad, 1: good}", {"0": "bad", "1": "good"}),
        # Keys that hold text take it as it stands, ...
        ("data.template", "{text} It was", "{text} It was"),
        ("data.template", "{text}", "{text}"),
        ("data.template", "Review: {text}\nSentiment:", "Review: {text}\nSentiment:"),
        ("data.template", '["{text} It was", "{text} So"]', ["{text} It was", "{text} So"]),
        ("data.template", "[{text}]", "[{text}]"),
        ("data.train.1.split", "1", "1"),
        ("data.options", "entities", "entities"),
        ("model.revision", "12345e6", "12345e6"),
        ("data.labels.0", "true", "true"),
        # ... but YAML's quotes and its null still mean what they mean.
        ("data.template", "'{text} It was'", "{text} It was"),
        ("data.train.split", "null", None),
    ],
)
def test_values(key: str, text: str, value: object) -> None:
    assert parse(text, tuple(key.split("."))) == value
