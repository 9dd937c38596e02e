from __future__ import annotations

from typing import Any

import pytest
from support.recipes import recipe

from zoft.recipe.resolved import with_defaults
from zoft.recipe.schema import Recipe
from zoft.recipe.sections.optimizers.radazo import RAdaZO


@pytest.mark.parametrize(
    ("method", "name", "lr", "moments", "window", "perturbation"),
    [
        ("full", "r-adazo", 2e-4, "scalar", 22, "auto"),
        ("full", "mezo", 1e-6, None, None, "auto"),
        ("lora", "r-adazo", 5e-5, "full", 22, 1e-2),
        ("lora", "mezo", 1e-4, None, None, 1e-2),
        ("ia3", "r-adazo", 5e-3, "full", 22, 3e-2),
        ("prefix", "mezo", 1e-2, None, None, 1e-1),
        ("prompt", "r-adazo", 5e-3, "full", 22, 1e-2),
    ],
)
def test_what_auto_stands_for(
    method: str,
    name: str,
    lr: float,
    moments: str | None,
    window: int | None,
    perturbation: object,
) -> None:
    filled = with_defaults(recipe(tune={"method": method}, optimizer={"name": name})).optimizer
    assert filled.lr == lr
    assert (getattr(filled, "moments", None), getattr(filled, "window", None)) == (moments, window)
    assert filled.perturbation == perturbation


def test_biases_and_norms_take_longer_steps() -> None:
    filled = with_defaults(recipe(tune={"only": "norm"})).optimizer
    assert isinstance(filled, RAdaZO)
    assert (filled.lr, filled.perturbation, filled.moments) == (1e-3, 1e-2, "scalar")
    assert (filled.structure, filled.scope) == ("rank1", "example")


@pytest.mark.parametrize(
    ("method", "given", "structure", "scope"),
    [
        ("full", {}, "rank1", "example"),
        ("lora", {}, "dense", "batch"),
        ("full", {"name": "mezo"}, "dense", "batch"),
        ("full", {"distribution": "gaussian"}, "dense", "batch"),
        ("full", {"sides": 1}, "rank1", "example"),
        ("full", {"structure": "dense"}, "dense", "batch"),
        ("full", {"scope": "batch"}, "rank1", "batch"),
        ("lora", {"scope": "example"}, "rank1", "example"),
        ("lora", {"structure": "rank1"}, "rank1", "example"),
        ("full", {"name": "mezo", "structure": "rank1"}, "rank1", "batch"),
        ("full", {"name": "mezo", "scope": "example"}, "rank1", "example"),
    ],
)
def test_which_directions(method: str, given: dict[str, Any], structure: str, scope: str) -> None:
    filled = with_defaults(recipe(tune={"method": method}, optimizer=given))
    assert (filled.optimizer.structure, filled.optimizer.scope) == (structure, scope)
    assert with_defaults(filled) == filled
    assert Recipe.model_validate(filled.model_dump()) == filled


@pytest.mark.parametrize(
    ("method", "given", "lr"),
    [
        ("full", {"scope": "batch"}, 1e-4),
        ("full", {"structure": "dense"}, 1e-4),
        ("full", {"distribution": "gaussian"}, 1e-4),
        ("lora", {"scope": "example"}, 5e-5),
        ("full", {"name": "mezo", "scope": "example"}, 1e-6),
        ("full", {"lr": 7e-4}, 7e-4),
    ],
)
def test_the_longer_step_is_for_full_tuning_with_a_direction_per_example(
    method: str, given: dict[str, Any], lr: float
) -> None:
    assert with_defaults(recipe(tune={"method": method}, optimizer=given)).optimizer.lr == lr


def test_a_longer_window_where_moments_are_recomputed() -> None:
    filled = with_defaults(recipe(optimizer={"moments": "window"})).optimizer
    assert isinstance(filled, RAdaZO)
    assert filled.window == 44


def test_what_was_given_stays() -> None:
    given = {"lr": 3.0, "moments": "full", "window": 7, "perturbation": 0.5}
    sections = {
        "tune": {"method": "lora"},
        "optimizer": given,
        "model": {"name": "m", "dtype": "bfloat16"},
        "train": {"micro_batch_size": 3},
    }
    filled = with_defaults(recipe(**sections))
    assert filled.optimizer.model_dump(include=set(given)) == given
    assert (filled.model.dtype, filled.train.micro_batch_size) == ("bfloat16", 3)
    ungrouped = recipe(train={"group_by_length": False}, optimizer={"paired": True})
    assert with_defaults(ungrouped).train.group_by_length is False
    assert with_defaults(ungrouped).optimizer.paired is True


def test_the_rest_follows_from_the_recipe() -> None:
    filled = with_defaults(recipe(train={"batch_size": 5}))
    assert (filled.model.dtype, filled.train.micro_batch_size) == ("float32", 5)
    assert filled.train.group_by_length is True
    assert filled.objective.name == "lm"
    words = {"format": "auto", "template": "{text}", "labels": {0: "a", 1: "b"}}
    assert with_defaults(recipe(data=words)).objective.name == "choice"


def test_what_needs_the_machine_stays_auto() -> None:
    filled = with_defaults(recipe())
    assert (filled.device, filled.model.compute_dtype) == ("auto", "auto")
    assert (filled.tune.target_modules, filled.optimizer.paired) == ("auto", "auto")


@pytest.mark.parametrize("method", ["full", "lora"])
def test_defaults_are_valid_and_filled_once(method: str) -> None:
    filled = with_defaults(recipe(tune={"method": method}))
    assert with_defaults(filled) == filled
    assert Recipe.model_validate(filled.model_dump()) == filled
