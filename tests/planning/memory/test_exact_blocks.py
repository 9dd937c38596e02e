"""How many of the last blocks learn by exact gradients in how much memory."""

from __future__ import annotations

from pathlib import Path

import pytest
from support.recipes import of_tiny_llama as recipe

from zoft.errors import EnvironmentProblem, OutOfMemory
from zoft.planning.memory.exact_blocks import with_exact_blocks
from zoft.planning.memory.footprint import footprint
from zoft.planning.placement import choose
from zoft.planning.workload import shape_of
from zoft.recipe.resolved import Resolved

BLOCKS = 12
TRAIN = {"batch_size": 256, "micro_batch_size": 2}  # what enters the blocks is most of it


def made(folder: Path, tail: str) -> Resolved:
    return recipe(folder, blocks=BLOCKS, train=TRAIN, tune={"tail": tail})


def taken(folder: Path, number: int) -> int:
    exact = made(folder, f"blocks:{number}")
    return footprint(exact, shape_of(exact)).unchecked.device


@pytest.mark.parametrize("number", [1, 3])
def test_as_many_blocks_as_the_device_has_room_for(number: int, tmp_path: Path) -> None:
    auto = made(tmp_path, "blocks:auto")
    budget = taken(tmp_path, number)
    assert budget < taken(tmp_path, BLOCKS)
    found, shape = with_exact_blocks(auto, shape_of(auto), budget)
    assert found.tune.tail == f"blocks:{number}"
    assert shape == shape_of(found)
    assert choose(found, shape, budget, 0).residency == "device"


def test_all_blocks_where_they_fit(tmp_path: Path) -> None:
    auto = made(tmp_path, "blocks:auto")
    found, shape = with_exact_blocks(auto, shape_of(auto), taken(tmp_path, BLOCKS))
    assert found.tune.tail == f"blocks:{BLOCKS}"
    assert not any(weight.tuned for weight in shape.weights)


def test_a_tail_without_room_says_what_would_have_it(tmp_path: Path) -> None:
    auto = made(tmp_path, "blocks:auto")
    found, shape = with_exact_blocks(auto, shape_of(auto), 10**5)
    with pytest.raises(OutOfMemory, match=r"cannot be streamed, .* with tune\.tail=head"):
        choose(found, shape, 10**5, 0)
    onto_disk = found.model_copy(
        update={"model": found.model.model_copy(update={"residency": "disk"})}
    )
    with pytest.raises(EnvironmentProblem, match=r"cannot be streamed, .* with tune\.tail=head"):
        choose(onto_disk, shape, 10**9, 0)


def test_any_other_tail_stays(tmp_path: Path) -> None:
    for tail in ("none", "head", "norm", "blocks:2"):
        given = made(tmp_path, tail)
        shape = shape_of(given)
        assert with_exact_blocks(given, shape, 0) == (given, shape)
