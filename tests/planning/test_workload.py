from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from support import tiny
from support.recipes import of_tiny_llama as recipe
from torch import nn

from zoft.data.examples import Choice, TextExample
from zoft.planning.resolve import resolve
from zoft.planning.workload import Shape, Texts, shape_of, texts_of
from zoft.recipe.schema import Recipe


def test_the_models_weights_each_once_with_its_block_and_kind(tmp_path: Path) -> None:
    shape = shape_of(recipe(tmp_path))
    by_name = {w.name: w for w in shape.weights}
    assert {n: w.shape for n, w in by_name.items()} == {
        n: tuple(p.shape) for n, p in tiny.llama().named_parameters()
    }
    assert all(w.tuned for w in shape.weights)
    assert by_name["model.layers.1.mlp.up_proj.weight"].block == 1
    assert by_name["model.norm.weight"].block is None
    kinds = {w.kind: name for name, w in by_name.items()}
    assert set(kinds) == {"product", "table", "whole"}
    assert kinds["table"] == "model.embed_tokens.weight"
    assert by_name["model.layers.0.input_layernorm.weight"].kind == "whole"
    assert (shape.head, shape.hidden, shape.vocabulary) == ("lm_head.weight", 48, tiny.VOCABULARY)
    assert shape.blocks == 2


def test_an_adapter_stands_in_blocks_but_is_told_apart(tmp_path: Path) -> None:
    shape = shape_of(recipe(tmp_path, tune={"method": "lora"}))
    adapter = [w for w in shape.weights if w.adapter]
    assert [w for w in shape.weights if w.tuned] == adapter
    assert {w.block for w in adapter} == {0, 1}


def test_without_data_the_recipes_limit_stands_in(tmp_path: Path) -> None:
    shape = shape_of(recipe(tmp_path))
    assert not shape.known
    assert shape.train == Texts(24, scored=24)
    assert shape.evaluation is None


def test_with_data_the_longest_example_counts(tmp_path: Path) -> None:
    sets = {"train": [TextExample((1, 2, 3), (2,)), TextExample((1, 2, 3, 4), (1, 2, 3))]}
    shape = shape_of(recipe(tmp_path), sets)
    assert shape.known
    assert shape.train == Texts(4, 1, 3, 7, 2)


def test_options_of_one_token_share_a_row() -> None:
    assert texts_of([Choice((1, 2), ((3,), (4,)), 0)] * 2) == Texts(3, 1, 0, 6, 2)
    apart = texts_of([Choice((1, 2), ((3,), (4, 5)), 0)])
    assert apart == Texts(4, 2, 2, 4, 1)


def test_a_model_that_cannot_be_traced_is_estimated_from_its_widths(tmp_path: Path) -> None:
    class Peeking(nn.Module):
        def get_output_embeddings(self) -> nn.Module:
            return nn.Linear(2, 2)

        def forward(self, **_: Any) -> None:
            raise ValueError("what do the numbers say?")

    seen = shape_of(recipe(tmp_path))
    unseen = Shape(
        **{name: getattr(seen, name) for name in seen.__dataclass_fields__ if name != "outline"},
        outline=Peeking(),
    )
    traced, estimated = seen.trace(4, 16), unseen.trace(4, 16)
    assert traced.bare_head
    assert estimated.bare_head
    assert traced.live < estimated.live < 2 * traced.live


@pytest.mark.parametrize("length", [16, 64])
def test_positions_limit_the_length(tmp_path: Path, length: int) -> None:
    config = tiny.opt().config
    config.max_position_embeddings = length
    config.save_pretrained(tmp_path)
    values = {
        "device": "cpu",
        "model": {"name": str(tmp_path), "compute_dtype": "float32"},
        "data": {"train": {"path": "none.jsonl"}, "format": "text", "max_length": 32},
    }
    shape = shape_of(resolve(Recipe.model_validate(values)))
    assert shape.train.longest == min(32, length)
    assert torch.device("meta") == next(shape.outline.parameters()).device  # type: ignore[union-attr]
