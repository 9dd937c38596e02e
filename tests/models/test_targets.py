from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from support import tiny
from torch import nn
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    MambaConfig,
    MambaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    PreTrainedModel,
)

from zoft.errors import RecipeError
from zoft.models.adapters import attach_adapter, load_adapter, of_adapter
from zoft.models.meta import build_outline
from zoft.models.prefix import begin_with_activations
from zoft.models.targets import feedforward, target_endings
from zoft.recipe.sections.tune import TuneSection

IDS = torch.tensor([[3, 40, 50, 60, 61, 17]])
ALL = TuneSection(method="lora", target_modules="all-linear")


def adapted_modules(model: PeftModel) -> set[str]:
    return {n.partition(".lora_")[0] for n, _ in model.named_parameters() if of_adapter(n)}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("build", [tiny.opt, tiny.llama, tiny.gpt2])
def test_all_linear_is_what_peft_means_by_it(build: Callable[[], PreTrainedModel]) -> None:
    config = LoraConfig(task_type="CAUSAL_LM", target_modules="all-linear")
    theirs = get_peft_model(build(), config)
    assert isinstance(theirs, PeftModel)
    ours = attach_adapter(build(), ALL, seed=0)
    assert adapted_modules(ours) == adapted_modules(theirs)
    assert not any("lm_head" in name for name in adapted_modules(ours))


def test_a_range_of_blocks() -> None:
    tune = ALL.model_copy(update={"layers": (1, 1), "target_modules": "auto"})
    for method in ("lora", "ia3"):
        some = tune.model_copy(update={"method": method})
        names = {n for n, _ in attach_adapter(tiny.llama(), some, 0).named_parameters()}
        assert all(".layers.1." in name for name in names if of_adapter(name))
    with pytest.raises(RecipeError, match="blocks 0 to 1"):
        attach_adapter(tiny.llama(), tune.model_copy(update={"layers": (0, 2)}), seed=0)
    table = tune.model_copy(update={"target_modules": ["embed_tokens"]})
    with pytest.raises(RecipeError, match="no block of them has a module embed_tokens"):
        attach_adapter(tiny.llama(), table, seed=0)


def test_ia3_scales_what_goes_into_the_second_feed_forward_matrix() -> None:
    tune = TuneSection(method="ia3")
    targets = target_endings(tiny.llama(), tune)
    assert targets == ["k_proj", "v_proj", "down_proj"]
    assert feedforward(tiny.llama(), targets) == ["down_proj"]
    full = ["model.layers.1.mlp.down_proj", "model.layers.1.self_attn.k_proj"]
    assert feedforward(tiny.llama(), full) == full[:1]


SMALL: dict[str, Any] = {
    "vocab_size": 64, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2,
    "num_attention_heads": 4, "num_key_value_heads": 4, "max_position_embeddings": 32,
    "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0,
}  # fmt: skip
GPT = {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 32, "dff": 48}
LATENT = {
    "q_lora_rank": 24, "kv_lora_rank": 16, "qk_nope_head_dim": 8, "qk_rope_head_dim": 8,
    "v_head_dim": 8, "head_dim": 8, "qk_head_dim": 16,
}  # fmt: skip
EXPERTS = {
    "n_routed_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16, "n_group": 1,
    "topk_group": 1, "first_k_dense_replace": 1, "n_shared_experts": 1,
}  # fmt: skip
DBRX = {
    "d_model": 32, "n_heads": 4, "n_layers": 2, "max_seq_len": 32,
    "attn_config": {"kv_n_heads": 2, "rope_theta": 1e4, "clip_qkv": 8.0},
    "ffn_config": {"hidden_size": 32, "ffn_hidden_size": 48, "moe_num_experts": 4, "moe_top_k": 2},
}  # fmt: skip
LONGCAT = LATENT | {
    "num_layers": 2, "ffn_hidden_size": 48, "expert_ffn_hidden_size": 16, "moe_topk": 2,
    "n_routed_experts": 4, "zero_expert_num": 2,
}  # fmt: skip
ZAYA = {"num_key_value_heads": 2, "head_dim": 8, "num_experts": 4, "moe_intermediate_size": 16}
# peft takes these names for the experts' stacked matrices, one inside the other.
STACKED = ["o_proj", "experts", "base_layer"]
MLA = ["kv_a_proj_with_mqa", "kv_b_proj", "q_a_proj", "q_b_proj"]
# Family: its config, what `auto` means, and what only `all-linear` adapts.
KINDS: dict[str, tuple[dict[str, Any], list[str], list[str]]] = {
    "phi3": ({}, ["qkv_proj"], ["o_proj", "gate_up_proj", "down_proj"]),
    "persimmon": ({}, ["query_key_value"], ["dense", "dense_h_to_4h", "dense_4h_to_h"]),
    "openai-gpt": (GPT, ["c_attn"], ["c_fc", "c_proj"]),
    "ctrl": (GPT, ["Wk", "Wq", "Wv"], ["dense", "0", "2"]),
    "dbrx": (DBRX, ["Wqkv"], ["out_proj", "layer"]),
    "mamba": ({"state_size": 8, "time_step_rank": 4}, ["in_proj", "x_proj"], []),
    "mamba2": ({"num_heads": 8, "head_dim": 8, "n_groups": 1, "state_size": 8}, ["in_proj"], []),
    "xlstm": (
        {"embedding_dim": 32, "num_blocks": 2, "num_heads": 4},
        ["k", "ogate_preact", "q", "v"],
        ["igate_preact", "fgate_preact", "out_proj", "proj_up_gate", "proj_up", "proj_down"],
    ),
    "minicpm3": (LATENT, MLA, ["o_proj", "gate_proj", "up_proj", "down_proj"]),
    "deepseek_v3": (LATENT | EXPERTS, MLA, STACKED),
    "longcat_flash": (LONGCAT, MLA, STACKED),
    "jetmoe": ({"num_local_experts": 4, "kv_channels": 8}, ["kv_proj"], ["layer"]),
    "zaya": (
        ZAYA,
        ["k_proj", "q_proj", "v_proj_current", "v_proj_delayed"],
        ["o_proj", "down_proj", "fc1", "fc2", "out_proj"],
    ),
    "deepseek_v4": (
        LATENT | EXPERTS | {"o_lora_rank": 8},
        ["compressor.gate_proj", "compressor.kv_proj", "q_a_proj", "self_attn.kv_proj", "q_b_proj"],
        ["o_b_proj", "gate_proj", "up_proj", "down_proj"],
    ),
}  # fmt: skip


def tiny_of(family: str, **changes: Any) -> PreTrainedModel:
    """A model of the family in eval mode, every weight random."""
    config = AutoConfig.for_model(family, **SMALL | changes)
    build: Any = AutoModelForCausalLM
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model: PreTrainedModel = build.from_config(config).eval()
        for parameter in model.parameters():
            parameter.data += 0.1 * torch.randn_like(parameter)
    model.config.use_cache = False
    model.requires_grad_(False)
    return model


@pytest.mark.parametrize("words", ["auto", "all-linear"])
@pytest.mark.parametrize("family", KINDS)
def test_every_kind_of_decoder_has_modules_that_an_adapter_changes(family: str, words: Any) -> None:
    changes, auto, more = KINDS[family]
    model = tiny_of(family, **changes)
    plain = model(input_ids=IDS).logits
    tune = TuneSection(method="lora", r=4, target_modules=words)
    adapted = attach_adapter(model, tune, seed=0)
    called = set()
    modules = {n: m for n, m in adapted.named_modules() if n in adapted_modules(adapted)}
    for name, module in modules.items():
        module.register_forward_hook(lambda *_, name=name: called.add(name))
    assert torch.allclose(adapted(input_ids=IDS).logits, plain, atol=1e-5)
    assert called == modules.keys()
    for name, parameter in adapted.named_parameters():
        if "lora_B" in name:
            parameter.data += 1
    assert (adapted(input_ids=IDS).logits - plain).abs().max() > 1e-3
    found = {name.rpartition(".")[2] for name in modules}
    expected = {ending.rpartition(".")[2] for ending in auto}
    assert found == (expected if words == "auto" else expected | set(more))


@pytest.mark.parametrize("family", KINDS)
def test_auto_means_the_same_in_an_outline(family: str) -> None:
    changes, auto, _ = KINDS[family]
    config = AutoConfig.for_model(family, **SMALL | changes)
    outline: Any = build_outline(config, TuneSection(), stored=torch.bfloat16)
    tune = TuneSection(method="lora", r=4)
    assert target_endings(outline, tune) == sorted(target_endings(outline, tune))
    assert {x.rpartition(".")[2] for x in target_endings(outline, tune)} == {
        x.rpartition(".")[2] for x in auto
    }


def test_ia3_finds_the_second_feed_forward_matrix_by_place() -> None:
    model = tiny_of("openai-gpt", **GPT)
    assert target_endings(model, TuneSection(method="ia3")) == ["c_attn", "mlp.c_proj"]
    assert feedforward(model, ["c_attn", "mlp.c_proj"]) == ["mlp.c_proj"]
    names = {n for n, _ in attach_adapter(model, TuneSection(method="ia3"), 0).named_parameters()}
    assert sum(".ia3_" in name for name in names) == 2 * 2


def test_an_adapter_of_full_names_comes_back(tmp_path: Path) -> None:
    """CTRL calls a matrix `2`, as its third block, so names of modules are spelled out."""
    three = GPT | {"n_layer": 3, "num_hidden_layers": 3}
    tune = TuneSection(method="lora", target_modules=["2"])
    adapted = attach_adapter(tiny_of("ctrl", **three), tune, seed=0)
    assert adapted_modules(adapted) == {
        f"base_model.model.transformer.h.{i}.ffn.2" for i in range(3)
    }
    adapted.save_pretrained(tmp_path)
    again = load_adapter(tiny_of("ctrl", **three), tmp_path)
    assert adapted_modules(again) == adapted_modules(adapted)


def test_models_that_take_no_such_adapter() -> None:
    bare: Any = tiny.llama()
    bare.config.model_type = "stranger"
    bare.model.layers = nn.ModuleList()
    with pytest.raises(
        RecipeError, match=r"target_modules: no default for ia3 and stranger models"
    ):
        attach_adapter(bare, TuneSection(method="ia3"), seed=0)
    mamba = tiny_of("mamba", **KINDS["mamba"][0])
    named = TuneSection(method="lora", target_modules=["out_proj"])
    with pytest.raises(
        RecipeError, match=r"MambaForCausalLM takes no lora: .*'out_proj' is incomp"
    ):
        attach_adapter(mamba, named, seed=0)
    typo = TuneSection(method="lora", target_modules=["zzz"])
    with pytest.raises(
        RecipeError, match=r"'zzz' is no linear module .* there are: in_proj, x_proj$"
    ):
        attach_adapter(mamba, typo, seed=0)


def test_a_matrix_that_computes_more_than_a_product_is_refused() -> None:
    model = tiny_of("deepseek_v4", **KINDS["deepseek_v4"][0])
    named = TuneSection(method="lora", target_modules=["o_a_proj"])
    with pytest.raises(RecipeError, match=r"tune\.target_modules: .*o_a_proj, a DeepseekV4Grouped"):
        attach_adapter(model, named, seed=0)


def test_models_without_keys_and_values_take_no_prefix() -> None:
    mamba = MambaForCausalLM(MambaConfig(vocab_size=16, hidden_size=8, num_hidden_layers=1))
    with pytest.raises(RecipeError, match=r"tune\.method: MambaForCausalLM takes no prefix: "):
        attach_adapter(mamba, TuneSection(method="prefix"), seed=0)
    narrow = MistralForCausalLM(
        MistralConfig(
            vocab_size=16, hidden_size=8, intermediate_size=8, num_hidden_layers=1,
            num_attention_heads=2, num_key_value_heads=1, sliding_window=4,
        )
    )  # fmt: skip
    narrow.config.use_cache = False
    with pytest.raises(RecipeError, match=r"takes no prefix: Need at least 5 cached tokens"):
        begin_with_activations(attach_adapter(narrow, TuneSection(method="prefix"), 0), seed=0)
