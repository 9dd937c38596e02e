from __future__ import annotations

from typing import Any

import pytest
from pydantic import ValidationError

from zoft.recipe.fields import fields, holds_text
from zoft.recipe.messages import explain
from zoft.recipe.resolved import with_defaults
from zoft.recipe.schema import Recipe
from zoft.recipe.sections.optimizer import RULES

MINIMAL: dict[str, Any] = {
    "model": {"name": "m"},
    "data": {"train": {"path": "t.jsonl"}, "template": "{text} It was", "labels": {0: "a", 1: "b"}},
}


BARE: dict[str, Any] = {"template": None, "labels": {}}  # what classification alone takes


def data(**changes: Any) -> dict[str, Any]:
    return {"data": {**MINIMAL["data"], **changes}}


def places(caught: pytest.ExceptionInfo[ValidationError]) -> list[tuple[Any, ...]]:
    """Where the errors are, without the names of the rules that a section may be of."""
    return [
        tuple(part for part in error["loc"] if part not in RULES) for error in caught.value.errors()
    ]


def test_only_the_model_and_the_training_rows_are_required() -> None:
    with pytest.raises(ValidationError) as caught:
        Recipe.model_validate({"model": {}, "data": {"format": "text"}})
    assert places(caught) == [("model", "name"), ("data", "train")]


def test_every_field_is_documented() -> None:
    assert len(fields()) > 50
    for key, field in fields().items():
        assert field.description, f"{'.'.join(key)} has no description"
        assert field.description.endswith((".", "...")), key


def test_a_recipe_is_frozen() -> None:
    recipe = Recipe.model_validate(MINIMAL)
    with pytest.raises(ValidationError, match="frozen"):
        recipe.seed = 1  # type: ignore[misc]


def test_label_values_become_text_and_keep_their_order() -> None:
    recipe = Recipe.model_validate(MINIMAL | data(labels={1: "yes", 0: "no"}))
    assert list(recipe.data.labels.items()) == [("1", "yes"), ("0", "no")]
    recipe = Recipe.model_validate(MINIMAL | data(labels={"b": "yes", False: "no"}))
    assert list(recipe.data.labels) == ["b", "False"]


def test_an_empty_section_means_its_defaults() -> None:
    assert Recipe.model_validate(MINIMAL | {"train": None}) == Recipe.model_validate(MINIMAL)


@pytest.mark.parametrize(
    ("changes", "where", "what"),
    [
        (
            {"model": {"name": "m", "quantization": "nf4"}},
            ("tune",),
            "codes of model.quantization nf4 are never perturbed: set tune.method: lora",
        ),
        (data(template=None), ("data", "template"), "needs one"),
        (data(template="It was"), ("data", "template"), "must name a column"),
        (data(template="{} was"), ("data", "template"), "must name a column"),
        (data(template="{text was"), ("data", "template"), "brace"),
        (data(labels={0: "a"}), ("data", "labels"), "at least two"),
        (data(labels={0: "a", 1: "a"}), ("data", "labels"), "same word"),
        (data(labels={0: "a", "0": "b"}), ("data", "labels"), "same text"),
        (data(labels={}), ("data", "template"), "needs data.labels as well"),
        (data(format="classification", labels={}), ("data", "template"), "needs data.labels"),
        (data(format="text"), ("data", "template"), "labels and data.options do not go with"),
        (data(format="text", labels={}), ("data", "template"), "format text has none"),
        (data(template="rtee"), ("data", "template"), "did you mean the task rte?"),
        (data(template=[]), ("data", "template"), "empty list"),
        (data(template=["{text}", "x"]), ("data", "template"), "'x' must name a column"),
        (data(template="{text:lower} It was"), ("data", "template"), "no-period, uncapital"),
        (data(template="squad", format="text", labels={}), ("data", "template"), "is prompt-compl"),
        (data(template="squad"), ("data", "template"), "do not go with data.format prompt-comp"),
        (data(options="entities"), ("data", "options"), "remove one"),
        (data(options=["{a}"], labels={}), ("data", "options"), "at least two"),
        (data(train=[]), ("data", "train"), "empty list"),
        (data(eval={"path": "a/b", "streaming": True}), ("data", "eval"), "need a limit"),
        (data(columns={"txt": "review"}), ("data", "columns"), "no role txt"),
        (
            data(format="text", **BARE) | {"objective": {"name": "choice"}},
            ("objective",),
            "not text",
        ),
        (
            data(format="text", **BARE) | {"eval": {"metric": "accuracy"}},
            ("eval",),
            "options, not text",
        ),
        (data(format="text", **BARE) | {"eval": {"metric": "f1"}}, ("eval",), "a prompt, not text"),
        (
            {"train": {"batch_size": 4, "micro_batch_size": 5}},
            ("train", "micro_batch_size"),
            "5 is more than train.batch_size 4",
        ),
        (
            {"optimizer": {"structure": "dense", "scope": "example"}},
            ("optimizer", "scope"),
            "needs optimizer.structure rank1",
        ),
        (
            {"optimizer": {"structure": "rank1", "distribution": "gaussian"}},
            ("optimizer", "distribution"),
            "use rademacher",
        ),
        (
            {"optimizer": {"scope": "example", "distribution": "gaussian"}},
            ("optimizer", "distribution"),
            "use rademacher",
        ),
        (
            {"optimizer": {"paired": True, "sides": 1}},
            ("optimizer", "paired"),
            "one-sided probes have no pair",
        ),
        (
            {"tune": {"method": "lora", "only": "bias"}},
            ("tune", "only"),
            "bias chooses among the model's own weights, not of lora",
        ),
        (
            {"tune": {"layers": [3, 2]}},
            ("tune", "layers"),
            "the first block, 3, comes after the last, 2",
        ),
        (
            {"tune": {"method": "prefix", "layers": [0, 1]}},
            ("tune", "layers"),
            "not with prefix",
        ),
    ],
)
def test_keys_that_do_not_fit_each_other(
    changes: dict[str, Any], where: tuple[str, ...], what: str
) -> None:
    with pytest.raises(ValidationError) as caught:
        Recipe.model_validate(MINIMAL | changes)
    (error,) = caught.value.errors()
    assert places(caught) == [where]
    assert what in error["msg"]


UNFOLDED = {"fold_momentum": False, "moments": "scalar"}


@pytest.mark.parametrize(
    ("method", "optimizer", "batch", "where", "what"),
    [
        ("full", {}, 2049, ("train",), "batch_size 2049 times 1 directions is 2049 in one sum"),
        ("full", {"directions": 129}, None, ("train",), "times 129 directions is 2064 in one sum"),
        ("full", UNFOLDED, 94, ("train",), "94 times 1 directions times the window 22 is 2068"),
        ("full", {**UNFOLDED, "window": 129}, None, ("train",), "scope: batch or optimizer.fold_m"),
        ("lora", {**UNFOLDED, "scope": "example"}, 94, ("train",), "the window 22 is 2068"),
        ("lora", {"scope": "example"}, 2049, ("train",), "2049 in one sum"),
        ("full", {"name": "mezo", "scope": "example"}, 2049, ("train",), "2049 in one sum"),
        # Sums of steps are the optimizer's own affair, whatever the batch.
        ("full", {**UNFOLDED, "directions": 94}, 1, ("optimizer", "directions"), "is 2068 in one"),
        ("full", {**UNFOLDED, "window": 2049}, 1, ("optimizer", "directions"), "is 2049 in one"),
    ],
)
def test_a_sum_that_would_not_be_exact(
    method: str, optimizer: dict[str, Any], batch: int | None, where: tuple[str, ...], what: str
) -> None:
    train = {} if batch is None else {"train": {"batch_size": batch}}
    changes = {"tune": {"method": method}, "optimizer": optimizer, **train}
    with pytest.raises(ValidationError) as caught:
        Recipe.model_validate(MINIMAL | changes)
    (error,) = caught.value.errors()
    assert places(caught) == [where]
    assert what in error["msg"]


@pytest.mark.parametrize(
    ("method", "optimizer", "batch"),
    [
        ("full", {}, 2048),
        ("full", {"directions": 128}, 16),
        ("full", {"directions": 2, "scope": "batch"}, 4096),
        ("full", {"structure": "dense"}, 4096),
        ("full", UNFOLDED, 93),
        ("full", {**UNFOLDED, "moments": "window"}, 2048),
        ("lora", {}, 4096),
        ("lora", {"scope": "example", "fold_momentum": False}, 2048),
        ("full", {"name": "mezo", "scope": "example"}, 2048),
    ],
)
def test_the_largest_sums(method: str, optimizer: dict[str, Any], batch: int) -> None:
    changes = {"tune": {"method": method}, "optimizer": optimizer, "train": {"batch_size": batch}}
    filled = with_defaults(Recipe.model_validate(MINIMAL | changes))
    assert Recipe.model_validate(filled.model_dump()) == filled


@pytest.mark.parametrize("paired", [True, False, "auto"])
def test_pairs(paired: bool | str) -> None:
    values = MINIMAL | {"optimizer": {"paired": paired}}
    assert Recipe.model_validate(values).optimizer.paired == paired
    if paired is not True:
        Recipe.model_validate(MINIMAL | {"optimizer": {"paired": paired, "sides": 1}})


@pytest.mark.parametrize("form", ["prompt-completion", "messages", "text"])
def test_only_classification_needs_a_template(form: str) -> None:
    recipe = Recipe.model_validate(MINIMAL | {"data": {"train": {"path": "t"}, "format": form}})
    assert recipe.data.template is None


@pytest.mark.parametrize(
    ("section", "key", "value"),
    [
        ("train", "steps", 0),
        ("train", "steps", 2**32),
        ("train", "steps", 1e3),
        ("train", "steps", True),
        ("train", "steps", "10"),
        ("optimizer", "lr", 0.0),
        ("optimizer", "lr", "1e-4"),
        ("optimizer", "perturbation", float("inf")),
        ("optimizer", "betas", [0.9, 1.0]),
        ("optimizer", "betas", [0.9]),
        ("optimizer", "directions", 1025),
        ("optimizer", "sides", 3),
        ("optimizer", "window", 0),
        ("optimizer", "structure", "rank-1"),
        ("optimizer", "scope", "row"),
        ("optimizer", "paired", "yes"),
        ("optimizer", "paired", 1),
        ("train", "group_by_length", "no"),
        ("tune", "include", "*"),
        ("model", "revision", 1234),
        ("data", "max_length", 1),
        ("checkpoint", "keep_last", 0),
    ],
)
def test_values_out_of_type_or_range(section: str, key: str, value: object) -> None:
    values = {**MINIMAL, section: {**MINIMAL.get(section, {}), key: value}}
    with pytest.raises(ValidationError) as caught:
        Recipe.model_validate(values)
    assert {place[:2] for place in places(caught)} == {(section, key)}


@pytest.mark.parametrize("device", ["auto", "cpu", "cuda", "cuda:11", "xpu:0"])
def test_devices(device: str) -> None:
    assert Recipe.model_validate(MINIMAL | {"device": device}).device == device


@pytest.mark.parametrize("device", ["", "cuda:", "cuda:a", "cuda:0:1", "CUDA", "cpu\n"])
def test_no_devices(device: str) -> None:
    with pytest.raises(ValidationError):
        Recipe.model_validate(MINIMAL | {"device": device})


def test_which_keys_hold_text() -> None:
    text = [("model", "name"), ("data", "template"), ("data", "eval", "path"), ("output_dir",)]
    assert all(holds_text(key) for key in [*text, ("data", "labels", "0")])
    assert not any(holds_text(key) for key in [("seed",), ("data", "labels"), ("tune", "include")])


@pytest.mark.parametrize(
    ("given", "size"),
    [("8GiB", 8 * 2**30), ("500MB", 500_000_000), ("1.5 gib", 3 * 2**29), (2**30, 2**30)],
)
def test_a_budget_is_a_size_or_auto(given: object, size: int) -> None:
    recipe = Recipe.model_validate(MINIMAL | {"memory": {"device_budget": given}})
    assert recipe.memory.device_budget == size
    assert recipe.memory.host_budget == "auto"
    assert Recipe.model_validate(recipe.model_dump(mode="json")) == recipe


@pytest.mark.parametrize("given", ["8", 8, "8 GiB or so", "8GBit", "lots", True, [1], -(2**30)])
def test_a_size_has_a_number_and_a_unit(given: object) -> None:
    with pytest.raises(ValidationError) as caught:
        Recipe.model_validate(MINIMAL | {"memory": {"device_budget": given}})
    values = MINIMAL | {"memory": {"device_budget": given}}
    [(key, text)] = explain(caught.value, values)
    assert key[:2] == ("memory", "device_budget")
    assert text.startswith("found ")
    assert text.endswith("expected auto or a size such as 8GiB or 500MB")
