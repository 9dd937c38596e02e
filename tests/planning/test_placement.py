from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import pytest
from support import tiny
from support.recipes import of_tiny_llama as recipe

from zoft.errors import OutOfMemory
from zoft.planning.memory.footprint import footprint
from zoft.planning.placement import budgets, choose, placed, spread
from zoft.planning.workload import Shape, shape_of
from zoft.recipe.resolved import Resolved
from zoft.recipe.schema import MemorySection
from zoft.system import host_memory
from zoft.system.host_memory import free_host_bytes

PLENTY = 2**40
BLOCKS = 12


@pytest.fixture
def planned(tmp_path: Path) -> tuple[Resolved, Shape]:
    made = recipe(tmp_path, tune={"method": "lora"})
    config = tiny.llama().config
    config.num_hidden_layers, config.hidden_size = BLOCKS, 192
    config.save_pretrained(tmp_path)
    return made, shape_of(made)


def gpu(recipe: Resolved, wanted: str = "auto") -> Resolved:
    model = recipe.model.model_copy(update={"residency": wanted})
    return recipe.model_copy(update={"device": "cuda:0", "model": model})


def test_the_device_if_it_fits(planned: tuple[Resolved, Shape]) -> None:
    made, shape = planned
    choice = choose(made, shape, PLENTY, 0)
    assert (choice.residency, choice.slots) == ("device", 0)
    assert choice.resident_blocks == tuple(range(BLOCKS))
    assert "fits on the device" in choice.why


def test_as_many_blocks_stay_as_the_budget_holds(planned: tuple[Resolved, Shape]) -> None:
    made, shape = planned
    most = footprint(gpu(made), shape).device
    least = footprint(gpu(made), shape, "host").device
    for budget in (most - 1, (most + least) // 2, least):
        choice = choose(gpu(made), shape, budget, PLENTY)
        assert choice.residency == "host"
        assert choice.footprint.device <= budget
        more = spread(len(choice.resident_blocks) + 1, BLOCKS)
        assert footprint(gpu(made), shape, "host", more).device > budget


def test_the_disk_if_the_host_is_full(planned: tuple[Resolved, Shape]) -> None:
    made, shape = planned
    needs = footprint(gpu(made), shape)
    host = footprint(gpu(made), shape, "disk").host
    assert choose(gpu(made), shape, needs.device - 1, host).residency == "disk"


def test_a_cpu_streams_from_the_disk(planned: tuple[Resolved, Shape]) -> None:
    made, shape = planned
    choice = choose(made, shape, footprint(made, shape).device - 1, 0)
    assert choice.residency == "disk"
    assert choice.why.startswith("on the device it needs")


@pytest.mark.parametrize("residency", ["auto", "disk"])
def test_one_block_at_a_time_where_two_do_not_fit(
    residency: str, planned: tuple[Resolved, Shape]
) -> None:
    made, shape = planned
    made = made.model_copy(update={"model": made.model.model_copy(update={"residency": residency})})
    two, one = (footprint(made, shape, "disk", slots=slots).device for slots in (2, 1))
    assert one < two
    choice = choose(made, shape, two - 1, 0)
    assert (choice.residency, choice.slots, choice.resident_blocks) == ("disk", 1, ())
    assert choice.footprint.device == one
    assert "one at a time" in choice.why
    assert choose(made, shape, two, 0).slots == 2
    with pytest.raises(OutOfMemory, match="even streamed from the disk"):
        choose(made, shape, one - 1, 0)


def test_what_the_recipe_says_is_done(planned: tuple[Resolved, Shape]) -> None:
    made, shape = planned
    choice = choose(gpu(made, "disk"), shape, PLENTY, PLENTY)
    assert (choice.residency, choice.resident_blocks) == ("disk", ())
    with pytest.raises(OutOfMemory, match="on the device it needs"):
        choose(gpu(made, "device"), shape, 10**6, PLENTY)


def test_what_is_needed_and_what_is_there(planned: tuple[Resolved, Shape]) -> None:
    made, shape = planned
    with pytest.raises(OutOfMemory, match=r"even streamed from the disk it needs .* GiB; 0.00 GiB"):
        choose(made, shape, 10**6, 0)
    with pytest.raises(OutOfMemory, match=r"0.00 GiB of the device and 0.01 GiB of the host"):
        choose(gpu(made), shape, 10**6, 10**7)


def test_a_settled_recipe_says_where_its_weights_are(planned: tuple[Resolved, Shape]) -> None:
    made, shape = planned
    found = placed(made, choose(made, shape, PLENTY, 0))
    assert (found.model.residency, found.offload.writeback) == ("device", "device")
    assert made.model.residency == "auto"


@pytest.mark.parametrize("number", range(BLOCKS + 1))
def test_resident_blocks_stand_apart(number: int) -> None:
    found = spread(number, BLOCKS)
    assert len(found) == number
    gaps = [b - a for a, b in pairwise(found)]
    assert not gaps or max(gaps) - min(gaps) <= 1


# -- budgets ------------------------------------------------------------------------------------


def test_a_budget_is_what_the_recipe_says_or_what_is_free(planned: tuple[Resolved, Shape]) -> None:
    made, _ = planned
    said = MemorySection(device_budget="2GiB")  # type: ignore[arg-type]
    assert budgets(made.model_copy(update={"memory": said})) == (2**31, 0)
    free, _ = budgets(made)
    assert 0.8 * free_host_bytes() < free < free_host_bytes()


def group(folder: Path, files: dict[str, str]) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in files.items():
        (folder / name).write_text(text)
    return folder


def test_a_control_group_of_version_2_limits(tmp_path: Path) -> None:
    limited = group(
        tmp_path / "a",
        {
            "memory.max": "1000\n",
            "memory.current": "700\n",
            "memory.stat": "anon 5\ninactive_file 200\n",
        },
    )
    assert list(host_memory._left(limited)) == [500]
    free = group(tmp_path / "b", {"memory.max": "max\n", "memory.current": "700\n"})
    assert list(host_memory._left(free)) == []


def test_a_control_group_of_version_1_limits(tmp_path: Path) -> None:
    limited = group(
        tmp_path,
        {
            "memory.limit_in_bytes": "1000\n",
            "memory.usage_in_bytes": "700\n",
            "memory.stat": "inactive_file 1\ntotal_inactive_file 100\n",
        },
    )
    assert list(host_memory._left(limited)) == [400]
