from __future__ import annotations

import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from support import tiny
from support.recipes import of_tiny_llama as recipe
from torch import nn

from zoft.models.meta import load_config
from zoft.planning import step_time as calibrate
from zoft.planning.step_time import bandwidth, passes
from zoft.planning.workload import Shape, Texts, shape_of
from zoft.recipe.resolved import Resolved


@pytest.mark.parametrize(
    ("optimizer", "train", "number"),
    [
        ({}, {"batch_size": 4}, 1),  # paired, until a check says otherwise
        ({"paired": False}, {"batch_size": 4}, 2),
        ({"directions": 3}, {"batch_size": 4}, 3),
        ({"directions": 3, "sides": 1}, {"batch_size": 4}, 4),
        ({}, {"batch_size": 5, "micro_batch_size": 2}, 3),
    ],
)
def test_passes_of_a_step(
    tmp_path: Path, optimizer: dict[str, Any], train: dict[str, Any], number: int
) -> None:
    assert passes(recipe(tmp_path, optimizer=optimizer, train=train)) == number


@pytest.mark.parametrize("method", ["full", "lora"])
def test_a_slice_is_the_models_first_blocks(tmp_path: Path, method: str) -> None:
    made = recipe(tmp_path, tune={"method": method})
    config = load_config(made.model)
    model = calibrate._slice(made, config, 1, torch.device("cpu"))
    names = {name.removeprefix("base_model.model.") for name, _ in model.named_parameters()}
    assert any("layers.0." in name for name in names)
    assert not any("layers.1." in name for name in names)
    assert all(torch.isfinite(p).all() for p in model.parameters())
    assert config.num_hidden_layers == 2


@pytest.mark.parametrize("texts", [Texts(24, 1, 24), Texts(24), Texts(24, 3, 2)])
@pytest.mark.parametrize("objective", ["lm", "choice"])
def test_seconds_are_measured_for_every_kind_of_example(
    tmp_path: Path, texts: Texts, objective: str
) -> None:
    data = {
        "train": {"path": "none.jsonl"}, "max_length": 24, "template": "{text}",
        "labels": {0: "a", 1: "b"},
    }  # fmt: skip
    made = recipe(tmp_path, data=data, objective={"name": objective}, train={"batch_size": 4})
    seen = shape_of(made)
    shape = Shape(seen.weights, seen.head, seen.hidden, seen.vocabulary, seen.buffers, texts, None)
    begun = time.perf_counter()
    found = calibrate.calibrate(made, shape, 2**40)
    elapsed = time.perf_counter() - begun
    assert found.block > 0
    assert found.block_update > 0
    assert found.step(2) < elapsed  # the slice is the whole model, and three such steps were taken


@pytest.mark.parametrize("work", [5e10, 1e7])
def test_seconds_of_a_slice_are_scaled_to_the_recipes_batch(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, work: float
) -> None:
    def times(
        _recipe: Resolved, _shape: Shape, blocks: int, rows: int, length: int
    ) -> tuple[float, float]:
        return rows * length * (2.0 + 3.0 * blocks), 5.0 + 7.0 * blocks

    monkeypatch.setattr(calibrate, "_times", times)
    monkeypatch.setitem(calibrate.WORK, "cpu", work)
    made = recipe(tmp_path, train={"batch_size": 64})
    found = calibrate.calibrate(made, shape_of(made), 2**40)
    tokens = 64 * 24
    assert found.block == pytest.approx(3 * tokens)
    assert found.rest == pytest.approx(2 * tokens)
    assert (found.block_update, found.rest_update) == pytest.approx((7, 5))
    assert found.step(10) == pytest.approx(32 * tokens + 75)


def test_without_room_for_a_slice_nothing_is_built(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = recipe(tmp_path)

    def build(*_: object) -> nn.Module:
        raise AssertionError("built")

    monkeypatch.setattr(calibrate, "_slice", build)
    with pytest.raises(MemoryError, match="two blocks take"):
        calibrate.calibrate(made, shape_of(made), 1000)


def test_a_large_batch_is_measured_on_some_of_its_rows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = recipe(tmp_path, train={"batch_size": 512})
    shape = shape_of(made)
    weights = sum(w.numel for w in shape.weights if w.kind == "product")
    monkeypatch.setitem(calibrate.WORK, "cpu", 4.0 * weights * 24 * 3.5)
    assert calibrate._affordable(made, shape) == (3, 24)
    monkeypatch.setitem(calibrate.WORK, "cpu", 4.0 * weights * 12.5)
    assert calibrate._affordable(made, shape) == (1, 12)


def test_of_a_mixture_the_experts_count_that_a_token_goes_to(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """More experts, of which a token goes to as many as before, are no more arithmetic."""
    made = recipe(tmp_path, train={"batch_size": 512}, objective={"name": "lm"})
    monkeypatch.setitem(calibrate.WORK, "cpu", 1e8)
    found = []
    for experts in (4, 64):
        tiny.mixtral(num_local_experts=experts).config.save_pretrained(tmp_path)
        shape = shape_of(made)
        assert shape.active == 2 / experts
        found.append((calibrate._affordable(made, shape), calibrate._share_of_a_block(shape)))
    assert found[0][0] == found[1][0]
    assert found[0][1] == pytest.approx(found[1][1], rel=0.05)  # but for the router
    assert found[0][0] < calibrate._affordable(made, replace(shape, active=0.01))


def test_reading_is_tried_on_the_models_own_files(tmp_path: Path) -> None:
    made = recipe(tmp_path)
    assert bandwidth(made, "disk") is None  # a config alone
    tiny.llama().save_pretrained(tmp_path)
    speed = bandwidth(made, "disk")
    assert speed is not None
    assert 1e5 < speed < 1e12
    assert bandwidth(made, "device") is None
