"""Files written tensor by tensor are those of `save_pretrained`, byte for byte."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from support import tiny
from support.streams import streamed_weights
from torch import Tensor
from transformers import (
    OPTConfig,
    OPTForCausalLM,
    PreTrainedModel,
)

from zoft.models.blocks import find_blocks, owned_parameters, placeholder
from zoft.models.load import load_model
from zoft.models.storage.save import save_tensor_by_tensor
from zoft.recipe.schema import ModelSection
from zoft.runs import checkpoint


def tied_llama() -> PreTrainedModel:
    return tiny.llama(tie=True)


def mixed_llama() -> PreTrainedModel:
    """Norms in another type than the rest: they lie elsewhere in the file."""
    model = tiny.llama(dtype=torch.bfloat16)
    for name, parameter in model.named_parameters():
        if "norm" in name:
            parameter.data = parameter.data.float()
    return model


def deep() -> PreTrainedModel:
    """Twelve blocks: in files, 10 comes before 2."""
    config = OPTConfig(
        vocab_size=31,
        hidden_size=8,
        word_embed_proj_dim=8,
        ffn_dim=8,
        num_hidden_layers=12,
        num_attention_heads=2,
        max_position_embeddings=8,
    )
    return OPTForCausalLM(config)


BUILDERS = [
    tiny.mixtral,
    tiny.opt,
    tiny.llama,
    tied_llama,
    tiny.gpt2,
    tiny.qwen2,
    mixed_llama,
    deep,
]


def emptied(model: PreTrainedModel) -> Iterator[tuple[str, Tensor]]:
    """Take the blocks' weights out of the model; returns all that it has, in an order of its own."""
    kept = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    for block in owned_parameters(model, find_blocks(model)):
        for parameter in block.values():
            parameter.data = placeholder(parameter.data)
    return iter(sorted(kept.items(), reverse=True))


def same_files(one: Path, other: Path) -> None:
    names = sorted(path.name for path in one.iterdir())
    assert names == sorted(path.name for path in other.iterdir())
    assert [n for n in names if (one / n).read_bytes() != (other / n).read_bytes()] == []


@pytest.mark.parametrize("shards", [None, 20_000, 700])
@pytest.mark.parametrize("reloaded", [False, True])
@pytest.mark.parametrize("build", BUILDERS)
def test_the_files_are_those_of_save_pretrained(
    tmp_path: Path, build: Callable[[], PreTrainedModel], shards: int | None, reloaded: bool
) -> None:
    """`reloaded`: transformers deals out shards in another order if it loaded the model."""
    model = build()
    if reloaded:
        model.save_pretrained(tmp_path / "first")
        section = ModelSection(name=str(tmp_path / "first"))
        model = load_model(
            tmp_path / "first", section, dtype=torch.bfloat16, device="cpu", streamed=None
        ).model
    size: dict[str, Any] = {} if shards is None else {"max_shard_size": shards}
    model.save_pretrained(tmp_path / "theirs", **size)
    (tmp_path / "ours").mkdir()
    weights = emptied(model)
    save_tensor_by_tensor(
        tmp_path / "ours", model, weights, **({} if shards is None else {"shard_bytes": shards})
    )
    same_files(tmp_path / "theirs", tmp_path / "ours")


def test_a_streamed_model_is_written_from_its_files(tmp_path: Path) -> None:
    tiny.llama().save_pretrained(tmp_path / "base")
    section = ModelSection(name=str(tmp_path / "base"))
    whole = load_model(tmp_path / "base", section, dtype=torch.bfloat16, device="cpu")
    loaded = load_model(
        tmp_path / "base", section, dtype=torch.bfloat16, device="cpu", streamed=lambda _: True
    )
    for name in ("ours", "theirs"):
        (tmp_path / name).mkdir()
    checkpoint.write_model(tmp_path / "theirs", whole.model, tiny.tokenizer())
    weights = streamed_weights(loaded, [], tmp_path / "working")
    checkpoint.write_model(tmp_path / "ours", loaded.model, tiny.tokenizer(), weights)
    weights.streamer.close()
    same_files(tmp_path / "theirs", tmp_path / "ours")
    assert not loaded.model.config.use_cache
