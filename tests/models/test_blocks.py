from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from support import tiny
from torch import nn
from transformers import PreTrainedModel

from zoft.errors import EnvironmentProblem
from zoft.models.adapters import attach_adapter
from zoft.models.blocks import find_blocks, find_towers, owned_parameters
from zoft.recipe.sections.tune import TuneSection


@pytest.mark.parametrize(
    ("build", "name"),
    [
        (tiny.opt, "model.decoder.layers"),
        (tiny.llama, "model.layers"),
        (tiny.gpt2, "transformer.h"),
        (tiny.qwen2, "model.layers"),
    ],
)
def test_the_blocks_of_a_decoder(build: Callable[[], PreTrainedModel], name: str) -> None:
    model = build()
    blocks = find_blocks(model)
    assert blocks.name == name
    assert blocks.modules == list(model.get_submodule(name).children())
    named = dict(model.named_parameters())
    owned = owned_parameters(model, blocks)
    assert len(owned) == 2
    assert {n for block in owned for n in block} == {n for n in named if n.startswith(name)}
    assert all(p is named[n] for block in owned for n, p in block.items())


def test_blocks_under_an_adapter() -> None:
    adapted = attach_adapter(tiny.llama(), TuneSection(method="lora"), seed=0)
    assert find_blocks(adapted).name == "base_model.model.model.layers"


def test_a_tower_of_images_is_no_part_of_the_decoder() -> None:
    model = tiny.with_vision()
    assert find_towers(model) == ("model.vision_tower", "model.multi_modal_projector")
    tower, decoder = model.model.vision_tower, model.model.language_model
    assert sum(p.numel() for p in tower.parameters()) > sum(p.numel() for p in decoder.parameters())
    assert find_blocks(model).name == "model.language_model.layers"
    adapted = attach_adapter(model, TuneSection(method="lora"), seed=0)
    assert find_blocks(adapted).name == "base_model.model.model.language_model.layers"
    assert find_towers(tiny.llama()) == ()


class Mixture(nn.Module):
    """A short list that weighs more, and a list inside its blocks."""

    def __init__(self) -> None:
        super().__init__()
        self.light = nn.ModuleList(nn.Linear(2, 2) for _ in range(9))
        self.heavy = nn.ModuleList(nn.ModuleDict({"experts": self.experts()}) for _ in range(3))

    def experts(self) -> nn.ModuleList:
        return nn.ModuleList(nn.Linear(8, 8) for _ in range(20))


def test_weight_decides_and_inner_lists_do_not_count() -> None:
    model = Mixture()
    blocks = find_blocks(model)
    assert blocks.name == "heavy"
    assert blocks.modules == list(model.heavy)


def test_what_is_shared_stays_out() -> None:
    model: Any = Mixture()
    twice, tied = model.heavy[0]["experts"], model.heavy[1]["experts"]
    twice[1] = twice[0]  # inside one block: still its own
    tied[0] = model.heavy[2]["experts"][0]  # between two blocks
    tied[1].weight = model.light[0].weight = nn.Parameter(tied[1].weight)  # with the outside
    first, second, third = owned_parameters(model, find_blocks(model))
    assert len(first) == 2 * 19
    assert "heavy.1.experts.0.weight" not in second
    assert "heavy.1.experts.1.weight" not in second
    assert "heavy.1.experts.1.bias" in second
    assert len(second) == 2 * 20 - 3
    assert len(third) == 2 * 20 - 2


def test_a_model_without_blocks_is_one_line() -> None:
    with pytest.raises(EnvironmentProblem, match="Linear has no list of blocks"):
        find_blocks(nn.Linear(2, 2))
