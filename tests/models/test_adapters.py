from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from support import tiny
from torch import Tensor
from transformers import GPTNeoXConfig, GPTNeoXForCausalLM, PreTrainedModel

from zoft.errors import EnvironmentProblem, RecipeError
from zoft.models.adapters import attach_adapter, base_of, is_adapter, load_adapter
from zoft.recipe.sections.tune import TuneSection
from zoft.runs.checkpoint import write_model

LORA = TuneSection(method="lora", r=4)
IDS = torch.tensor([[0, 40, 50, 60, 70]])
BUILDERS = [tiny.opt, tiny.llama, tiny.gpt2, tiny.qwen2]


def adapter_of(model: torch.nn.Module) -> dict[str, Tensor]:
    return {name: p.data for name, p in model.named_parameters() if "lora_" in name}


@pytest.mark.parametrize("build", BUILDERS)
def test_a_new_adapter_changes_nothing_yet(build: Callable[[], PreTrainedModel]) -> None:
    adapted = attach_adapter(build(), LORA, seed=0)
    weights = adapter_of(adapted)
    assert weights
    assert torch.equal(adapted(IDS).logits, build()(IDS).logits)
    assert {w.dtype for w in weights.values()} == {torch.float32}
    assert not adapted.training
    assert not any(p.requires_grad for p in adapted.parameters())
    assert all(w.any() == ("lora_A" in name) for name, w in weights.items())


def test_the_seed_alone_decides_and_the_global_generator_rests() -> None:
    torch.manual_seed(1)
    first = adapter_of(attach_adapter(tiny.llama(), LORA, seed=7))
    state = torch.get_rng_state()
    torch.rand(3)
    second = adapter_of(attach_adapter(tiny.llama(), LORA, seed=7))
    torch.manual_seed(1)
    assert torch.equal(state, torch.get_rng_state())
    assert all(torch.equal(first[name], second[name]) for name in first)
    third = adapter_of(attach_adapter(tiny.llama(), LORA, seed=8))
    assert not all(torch.equal(first[name], third[name]) for name in first)


def test_the_adapter_of_a_bfloat16_base_is_float32_or_as_asked() -> None:
    base = tiny.llama(dtype=torch.bfloat16)
    assert {w.dtype for w in adapter_of(attach_adapter(base, LORA, 0)).values()} == {torch.float32}
    base = tiny.llama(dtype=torch.bfloat16)
    weights = adapter_of(attach_adapter(base, LORA, 0, torch.bfloat16))
    assert {w.dtype for w in weights.values()} == {torch.bfloat16}


@pytest.mark.parametrize("build", BUILDERS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_an_adapter_comes_back_bit_for_bit(
    tmp_path: Path, build: Callable[..., PreTrainedModel], dtype: torch.dtype
) -> None:
    base = build(dtype=dtype)
    base.name_or_path = "somebody/some-model"
    base.config._commit_hash = "main"
    adapted = attach_adapter(base, LORA, seed=3)
    for weight in adapter_of(adapted).values():
        weight += 0.01
    write_model(tmp_path, adapted, tiny.tokenizer())
    assert is_adapter(tmp_path)
    assert base_of(tmp_path) == ("somebody/some-model", "main")
    again = load_adapter(build(dtype=dtype), tmp_path)
    ours, theirs = adapter_of(adapted), adapter_of(again)
    assert list(ours) == list(theirs)
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    assert torch.equal(again(IDS).logits, adapted(IDS).logits)
    assert not any(p.requires_grad for p in again.parameters())


def test_target_modules_are_name_endings() -> None:
    tune = TuneSection(method="lora", target_modules=["mlp.up_proj", "o_proj"])
    names = adapter_of(attach_adapter(tiny.llama(), tune, seed=0))
    assert len(names) == 2 * 2 * 2
    assert all("mlp.up_proj" in name or "o_proj" in name for name in names)


def test_unknown_target_modules_are_named() -> None:
    tune = TuneSection(method="lora", target_modules=["q_porj", "v_proj"])
    with pytest.raises(RecipeError, match=r"tune\.target_modules: 'q_porj' .*q_proj"):
        attach_adapter(tiny.llama(), tune, seed=0)


def test_auto_knows_a_family_or_looks_for_itself() -> None:
    config = GPTNeoXConfig(
        vocab_size=64,
        hidden_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=32,
    )
    model = GPTNeoXForCausalLM(config)
    known = adapter_of(attach_adapter(model, LORA, seed=0))  # peft knows the family
    stranger: Any = GPTNeoXForCausalLM(config)
    stranger.config.model_type = "stranger"
    assert adapter_of(attach_adapter(stranger, LORA, seed=0)).keys() == known.keys()


def test_adapters_that_cannot_be_read(tmp_path: Path) -> None:
    assert not is_adapter(tmp_path)
    with pytest.raises(EnvironmentProblem, match="cannot read"):
        base_of(tmp_path)
    with pytest.raises(EnvironmentProblem, match="cannot read"):
        load_adapter(tiny.llama(), tmp_path)
    (tmp_path / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": None}))
    with pytest.raises(EnvironmentProblem, match="does not name its base"):
        base_of(tmp_path)
    write_model(tmp_path / "opt", attach_adapter(tiny.opt(), LORA, seed=0), tiny.tokenizer())
    with pytest.raises(EnvironmentProblem, match="cannot load the adapter"):
        load_adapter(tiny.gpt2(), tmp_path / "opt")
