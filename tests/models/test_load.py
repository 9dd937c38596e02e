from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from support import tiny
from support.decoders.models import build
from transformers import BertConfig, BertLMHeadModel, PreTrainedModel

from zoft.errors import EnvironmentProblem
from zoft.models.load import fingerprint, load_model, load_tokenizer, require_causal
from zoft.recipe.schema import ModelSection

BUILDERS = [tiny.opt, tiny.llama, tiny.gpt2, tiny.qwen2]
IDS = torch.tensor([[0, 40, 50, 60, 70]])


def load(folder: Path, dtype: torch.dtype = torch.float32) -> PreTrainedModel:
    loaded = load_model(folder, ModelSection(name=str(folder)), dtype=dtype, device="cpu")
    require_causal(str(folder), loaded.model)
    return loaded.model


def tied(model: Any) -> bool:
    return model.get_output_embeddings().weight is model.get_input_embeddings().weight


@pytest.mark.parametrize("build", BUILDERS)
def test_a_model_is_loaded_still_and_whole(
    tmp_path: Path, build: Callable[[], PreTrainedModel]
) -> None:
    original = build()
    original.save_pretrained(tmp_path)
    model = load(tmp_path)
    assert torch.equal(model(IDS).logits, original(IDS).logits)
    assert not model.training
    assert not model.config.use_cache
    assert not any(p.requires_grad for p in model.parameters())
    assert tied(model) == tied(original)
    assert model.name_or_path == str(tmp_path)


def test_weights_do_not_live_in_the_file(tmp_path: Path) -> None:
    tiny.llama().save_pretrained(tmp_path)
    model = load(tmp_path)
    before = model(IDS).logits
    file = tmp_path / "model.safetensors"
    with file.open("r+b") as stream:  # in place: a mapping would see it
        stream.write(bytes(file.stat().st_size))
    assert torch.equal(model(IDS).logits, before)
    for name, parameter in model.named_parameters():
        assert parameter.is_contiguous(), name
        assert parameter.data_ptr() % 64 == 0, name
        assert parameter.untyped_storage().nbytes() == parameter.nbytes, name


def test_the_type_is_as_asked(tmp_path: Path) -> None:
    tiny.opt().save_pretrained(tmp_path)
    model = load(tmp_path, torch.bfloat16)
    assert {p.dtype for p in model.parameters()} == {torch.bfloat16}


def test_a_hub_model_keeps_its_name_and_commit(tmp_path: Path) -> None:
    commit = "0123456789abcdef0123456789abcdef01234567"
    folder = tmp_path / "snapshots" / commit
    tiny.opt().save_pretrained(folder)
    section = ModelSection(name="somebody/some-model")
    model = load_model(folder, section, dtype=torch.float32, device="cpu").model
    assert model.name_or_path == "somebody/some-model"
    assert model.config._commit_hash == commit


def test_missing_and_unknown_weights_are_named(tmp_path: Path) -> None:
    tiny.llama().save_pretrained(tmp_path)
    state = load_file(tmp_path / "model.safetensors")
    state["model.stranger.weight"] = state.pop("model.norm.weight")
    save_file(state, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(EnvironmentProblem) as caught:
        load(tmp_path)
    assert "lacks model.norm.weight" in str(caught.value)
    assert "holds unknown model.stranger.weight" in str(caught.value)


def test_a_weight_of_another_shape_is_named_with_both(tmp_path: Path) -> None:
    tiny.llama().save_pretrained(tmp_path)
    state = load_file(tmp_path / "model.safetensors")
    name = "model.layers.1.mlp.up_proj.weight"
    rows, width = state[name].shape
    state[name] = torch.zeros(rows - 1, width)
    save_file(state, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(EnvironmentProblem) as caught:
        load(tmp_path)
    stored, wanted = [rows - 1, width], [rows, width]
    assert str(caught.value).endswith(
        f"{name} has shape {stored} in the files, {wanted} by config.json"
    )


def test_an_expert_of_another_shape_is_named(tmp_path: Path) -> None:
    tiny.mixtral().save_pretrained(tmp_path)
    state = load_file(tmp_path / "model.safetensors")
    name = next(name for name in state if "experts.1" in name)
    state[name] = state[name][1:].clone()
    save_file(state, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(EnvironmentProblem, match=r"experts\..* (has shape|cannot be made)"):
        load(tmp_path)


@pytest.mark.parametrize("left", [(), ("tokenizer_config.json",)])
def test_a_model_without_a_tokenizer_says_so(left: tuple[str, ...], tmp_path: Path) -> None:
    tiny.llama().save_pretrained(tmp_path)
    tiny.tokenizer().save_pretrained(tmp_path)
    for path in tmp_path.glob("*token*"):
        if path.name not in left:
            path.unlink()
    with pytest.raises(EnvironmentProblem, match=r"holds no tokenizer \(tokenizer\.json"):
        load_tokenizer(tmp_path, ModelSection(name=str(tmp_path)))


def test_an_encoder_is_refused(tmp_path: Path) -> None:
    config = BertConfig(
        vocab_size=64,
        hidden_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=32,
        initializer_range=0.5,  # as strong as trained: at 0.02 attention hardly speaks
    )
    BertLMHeadModel(config).save_pretrained(tmp_path)
    with pytest.raises(EnvironmentProblem, match="not a decoder"):
        load(tmp_path)


@pytest.mark.parametrize("kind", ["t5", "from-the-future", None])
def test_an_unknown_architecture_is_one_line(tmp_path: Path, kind: str | None) -> None:
    tiny.opt().save_pretrained(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps({"model_type": kind} if kind else {}))
    with pytest.raises(EnvironmentProblem, match="cannot load") as caught:
        load(tmp_path)
    assert "\n" not in str(caught.value)


def test_the_tokenizer_beside_the_weights(tmp_path: Path) -> None:
    section = ModelSection(name=str(tmp_path))
    with pytest.raises(EnvironmentProblem, match="holds no tokenizer"):
        load_tokenizer(tmp_path, section)
    tiny.opt().save_pretrained(tmp_path)
    tiny.tokenizer().save_pretrained(tmp_path)
    loaded = load_tokenizer(tmp_path, section)
    assert loaded("It was great").input_ids == tiny.tokenizer()("It was great").input_ids


def test_the_fingerprint_is_of_the_weights_not_the_files(tmp_path: Path) -> None:
    one, many, other = tmp_path / "one", tmp_path / "many", tmp_path / "other"
    tiny.llama().save_pretrained(one)
    tiny.llama().save_pretrained(many, max_shard_size="50KB")
    tiny.llama().save_pretrained(other)
    assert len(list(many.glob("*.safetensors"))) > 1
    assert fingerprint(one) == fingerprint(many)
    state = load_file(other / "model.safetensors")
    state["lm_head.weight"].view(torch.int32)[5, 5] ^= 1
    save_file(state, other / "model.safetensors")
    assert fingerprint(other) != fingerprint(one)
    with pytest.raises(EnvironmentProblem):
        fingerprint(tmp_path)


def test_a_model_that_leaves_out_padding_is_looked_at_with_other_tokens() -> None:
    """XLM sees later tokens, and nothing that stands after one for padding."""
    with pytest.raises(EnvironmentProblem, match="it sees the tokens that come later"):
        require_causal("xlm", build("xlm"))
