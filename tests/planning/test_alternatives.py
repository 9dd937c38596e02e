from __future__ import annotations

from pathlib import Path
from typing import Any

from support import small, tiny

from zoft.planning.alternatives import Alternative, alternatives, places, smallest
from zoft.planning.memory.footprint import footprint
from zoft.planning.resolve import resolve
from zoft.planning.workload import shape_of
from zoft.recipe.load import load_recipe
from zoft.recipe.resolved import Resolved

PLENTY = 2**40


def found_by_override(
    folder: Path, *given: str, limits: tuple[int, int] = (PLENTY, 0)
) -> tuple[dict[str, Alternative], Resolved]:
    path = small.write(folder)

    def variant(*more: str) -> Resolved:
        return resolve(load_recipe(path, [*given, *more]))

    made = variant()
    shape = shape_of(made)
    now = footprint(made, shape)
    listed = alternatives(made, shape, None, now, limits, variant)
    return {x.overrides: x for x in listed}, made


def test_each_is_an_override_with_its_own_footprint(tmp_path: Path) -> None:
    found, made = found_by_override(tmp_path, "optimizer.moments=full")
    now = footprint(made, shape_of(made))
    for override in ("tune.method=lora", "optimizer.moments=scalar", "model.dtype=bfloat16"):
        assert found[override].footprint.device < now.device
    assert found["model.residency=disk"].footprint.residency == "disk"
    assert all(x.fits for x in found.values())


def test_what_changes_nothing_is_left_out(tmp_path: Path) -> None:
    found, made = found_by_override(tmp_path, "tune.method=lora")
    assert "tune.method=lora" not in found
    assert "model.residency=device" not in found
    now = footprint(made, shape_of(made))
    assert found
    assert all(x.footprint != now for x in found.values())


def test_what_the_recipe_does_not_allow_is_left_out(tmp_path: Path) -> None:
    found, _ = found_by_override(tmp_path, "optimizer.sides=1")
    assert "optimizer.paired=false" not in found


def test_without_room_none_fits(tmp_path: Path) -> None:
    found, _ = found_by_override(tmp_path, limits=(10**6, 0))
    assert found
    assert not any(x.fits for x in found.values())


def test_a_shorter_text_takes_less(tmp_path: Path) -> None:
    found, made = found_by_override(tmp_path, "data.max_length=64")
    shorter = found["data.max_length=32 data.on_overflow=truncate"]
    assert shorter.footprint.device < footprint(made, shape_of(made)).device


def test_the_smallest_keeps_no_block(tmp_path: Path) -> None:
    _, made = found_by_override(tmp_path)
    shape = shape_of(made)
    assert places(made, shape) == ["device", "disk"]
    assert smallest(made, shape).resident == ()
    gpu: Any = made.model_copy(update={"device": "cuda:0"})
    assert places(gpu, shape) == ["device", "host", "disk"]
    assert tiny.llama().config.num_hidden_layers == shape.blocks
