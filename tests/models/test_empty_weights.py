"""zoft's loading beside transformers' own, and models whose blocks stay in their files."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from support import tiny
from torch import Tensor, nn
from transformers import (
    AutoModelForCausalLM,
    CTRLConfig,
    CTRLLMHeadModel,
    DeepseekV3Config,
    DeepseekV3ForCausalLM,
    Gemma2Config,
    Gemma2ForCausalLM,
    GPTNeoXConfig,
    GPTNeoXForCausalLM,
    JambaConfig,
    JambaForCausalLM,
    LlamaConfig,
    PhimoeConfig,
    PhimoeForCausalLM,
    PreTrainedModel,
    Qwen3MoeConfig,
    Qwen3MoeForCausalLM,
)

from zoft.errors import EnvironmentProblem
from zoft.models.blocks import find_blocks, is_placeholder
from zoft.models.empty_weights import model_on_meta
from zoft.models.load import Loaded, load_model
from zoft.models.storage.gathered import read
from zoft.models.storage.safetensors import Reader, stored_tensors
from zoft.recipe.schema import ModelSection

IDS = torch.tensor([[0, 40, 50, 60, 70]])
SMALL: dict[str, Any] = {
    "vocab_size": 97,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 64,
}


def built(model: Any) -> PreTrainedModel:
    evaluating: PreTrainedModel = model.eval()
    return evaluating


def tied_llama() -> PreTrainedModel:
    return tiny.llama(tie=True)


def gemma2() -> PreTrainedModel:
    """Tied, a scale of the embeddings kept as a buffer, soft caps."""
    config = Gemma2Config(**SMALL, num_key_value_heads=2, head_dim=8, pad_token_id=0)
    return built(Gemma2ForCausalLM(config))


def neox() -> PreTrainedModel:
    """A base model's prefix of its own, biases everywhere."""
    return built(GPTNeoXForCausalLM(GPTNeoXConfig(**SMALL)))


def qwen3_moe() -> PreTrainedModel:
    """Its first block is dense."""
    config = Qwen3MoeConfig(
        **SMALL,
        num_key_value_heads=2,
        moe_intermediate_size=16,
        num_experts=4,
        num_experts_per_tok=2,
        mlp_only_layers=[0],
    )
    return built(Qwen3MoeForCausalLM(config))


def deepseek_v3() -> PreTrainedModel:
    """Latent attention, a shared expert, a buffer that the files hold."""
    config = DeepseekV3Config(
        **SMALL,
        num_key_value_heads=4,
        moe_intermediate_size=16,
        n_routed_experts=4,
        num_experts_per_tok=2,
        n_group=1,
        topk_group=1,
        first_k_dense_replace=1,
        q_lora_rank=16,
        kv_lora_rank=16,
        qk_rope_head_dim=8,
        qk_nope_head_dim=8,
        v_head_dim=8,
    )
    return built(DeepseekV3ForCausalLM(config))


def jamba() -> PreTrainedModel:
    """Mamba, attention and experts by turns."""
    sizes = {**SMALL, "num_hidden_layers": 3}
    config = JambaConfig(
        **sizes,
        num_key_value_heads=2,
        num_experts=4,
        attn_layer_period=3,
        attn_layer_offset=1,
        expert_layer_period=2,
        expert_layer_offset=1,
        mamba_d_state=4,
        mamba_dt_rank=4,
        use_mamba_kernels=False,
    )
    return built(JambaForCausalLM(config))


def phimoe() -> PreTrainedModel:
    """Biases; experts that the files number w1, w2, w3."""
    return built(
        PhimoeForCausalLM(PhimoeConfig(**SMALL, num_key_value_heads=2, num_local_experts=4))
    )


def ctrl() -> PreTrainedModel:
    """A tied head with a bias of its own."""
    config = CTRLConfig(vocab_size=97, n_positions=64, n_embd=32, dff=48, n_layer=2, n_head=4)
    return built(CTRLLMHeadModel(config))


CONVERTED = [tiny.mixtral, qwen3_moe, deepseek_v3, jamba, phimoe, ctrl]
PLAIN = [tiny.opt, tiny.llama, tied_llama, tiny.gpt2, tiny.qwen2, gemma2, neox]
DTYPES = [torch.float32, torch.bfloat16, torch.float16]


def load(
    folder: Path,
    dtype: torch.dtype = torch.float32,
    streamed: Callable[[int], bool] | None = None,
) -> Loaded:
    section = ModelSection(name=str(folder))
    return load_model(folder, section, dtype=dtype, device="cpu", streamed=streamed)


def same_bits(one: Tensor, other: Tensor) -> bool:
    return (one.dtype, one.shape) == (other.dtype, other.shape) and torch.equal(
        one.contiguous().view(-1).view(torch.uint8), other.contiguous().view(-1).view(torch.uint8)
    )


def require_same(ours: PreTrainedModel, theirs: PreTrainedModel) -> None:
    """The same tensors bit for bit, tied alike, and the same answers."""
    require_same_tensors(ours, theirs)
    with torch.inference_mode():
        assert torch.equal(ours(IDS).logits, theirs(IDS).logits)


def require_same_tensors(ours: PreTrainedModel, theirs: PreTrainedModel) -> None:
    for kind in ("named_parameters", "named_buffers"):
        one = dict(getattr(ours, kind)(remove_duplicate=False))
        other = dict(getattr(theirs, kind)(remove_duplicate=False))
        assert list(one) == list(other)
        assert [n for n in one if not same_bits(one[n], other[n])] == []
        assert len({id(t) for t in one.values()}) == len({id(t) for t in other.values()})


def theirs(folder: Path, dtype: torch.dtype) -> PreTrainedModel:
    return AutoModelForCausalLM.from_pretrained(folder, dtype=dtype)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("build", [*PLAIN, *CONVERTED])
def test_a_model_is_loaded_as_transformers_loads_it(
    tmp_path: Path, build: Callable[[], PreTrainedModel], dtype: torch.dtype
) -> None:
    build().save_pretrained(tmp_path)
    ours, other = load(tmp_path, dtype).model, theirs(tmp_path, dtype)
    require_same(ours, other)
    ours.save_pretrained(tmp_path / "ours")
    other.config.use_cache = False
    other.save_pretrained(tmp_path / "theirs")
    for file in (tmp_path / "theirs").iterdir():
        assert (tmp_path / "ours" / file.name).read_bytes() == file.read_bytes(), file.name


@pytest.mark.parametrize("kept", [torch.bfloat16, torch.float16])
def test_weights_are_cast_as_transformers_casts_them(tmp_path: Path, kept: torch.dtype) -> None:
    tiny.llama(dtype=kept).save_pretrained(tmp_path)
    for dtype in DTYPES:
        require_same(load(tmp_path, dtype).model, theirs(tmp_path, dtype))


def test_what_the_model_keeps_in_float32_is_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tiny.llama(dtype=torch.float32).save_pretrained(tmp_path)
    kind = type(tiny.llama())
    monkeypatch.setattr(kind, "_keep_in_fp32_modules_strict", ["down_proj"])
    loaded = load(tmp_path, torch.bfloat16, streamed=lambda _: True)
    assert loaded.model.model.layers[0].mlp.down_proj.weight.dtype == torch.float32
    require_same_tensors(streamed_in(loaded), theirs(tmp_path, torch.bfloat16))


@pytest.mark.parametrize("prefix", ["dropped", "as saved", "added"])
def test_the_base_models_prefix_may_be_there_or_not(tmp_path: Path, prefix: str) -> None:
    model = tiny.opt()
    if prefix == "dropped":
        model.model.save_pretrained(tmp_path)  # decoder.layers..., as in the first OPT files
    else:
        model.save_pretrained(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps(model.config.to_dict()))
    if prefix == "added":
        state = load_file(tmp_path / "model.safetensors")
        state["lm_head.weight"] = state["model.decoder.embed_tokens.weight"].clone()
        save_file(state, tmp_path / "model.safetensors", metadata={"format": "pt"})
    loaded = load(tmp_path, streamed=lambda _: True)
    assert len(loaded.sources) == 2 * 16
    require_same(streamed_in(loaded), theirs(tmp_path, torch.float32))


@pytest.mark.parametrize("change", ["equal", "equal once rounded", "not equal"])
def test_a_pair_that_lies_there_twice_is_tied_if_equal(tmp_path: Path, change: str) -> None:
    tiny.llama(tie=True).save_pretrained(tmp_path)
    state = load_file(tmp_path / "model.safetensors")
    head = state["model.embed_tokens.weight"].clone()
    head[5, 7] += {"equal": 0.0, "equal once rounded": 1e-9, "not equal": 1.0}[change]
    state["lm_head.weight"] = head
    save_file(state, tmp_path / "model.safetensors", metadata={"format": "pt"})
    for dtype in (torch.float32, torch.bfloat16):
        ours = load(tmp_path, dtype).model
        require_same(ours, theirs(tmp_path, dtype))
    assert (ours.lm_head.weight is ours.model.embed_tokens.weight) == (change != "not equal")


def test_the_head_may_be_the_one_that_is_there(tmp_path: Path) -> None:
    tiny.llama(tie=True).save_pretrained(tmp_path)
    state = load_file(tmp_path / "model.safetensors")
    state["lm_head.weight"] = state.pop("model.embed_tokens.weight")
    save_file(state, tmp_path / "model.safetensors", metadata={"format": "pt"})
    ours = load(tmp_path).model
    assert ours.lm_head.weight is ours.model.embed_tokens.weight
    require_same(ours, theirs(tmp_path, torch.float32))


def test_leftovers_that_transformers_ignores_are_ignored(tmp_path: Path) -> None:
    """Old files hold buffers that are computed now; at another value they must not come in."""
    tiny.llama().save_pretrained(tmp_path)
    state = load_file(tmp_path / "model.safetensors")
    state["model.rotary_emb.inv_freq"] = torch.full((6,), 7.0)
    state["model.layers.0.self_attn.rotary_emb.inv_freq"] = torch.full((6,), 7.0)
    save_file(state, tmp_path / "model.safetensors", metadata={"format": "pt"})
    require_same(load(tmp_path, torch.bfloat16).model, theirs(tmp_path, torch.bfloat16))


def test_a_wrong_shape_is_one_line(tmp_path: Path) -> None:
    tiny.llama().save_pretrained(tmp_path)
    state = load_file(tmp_path / "model.safetensors")
    state["model.norm.weight"] = torch.ones(7)
    save_file(state, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(EnvironmentProblem, match="cannot load") as caught:
        load(tmp_path)
    assert "\n" not in str(caught.value)


def test_the_generation_config_comes_along(tmp_path: Path) -> None:
    tiny.llama().save_pretrained(tmp_path)
    (tmp_path / "generation_config.json").write_text(json.dumps({"max_length": 7}))
    assert load(tmp_path).model.generation_config.max_length == 7


# -- streamed ---------------------------------------------------------------------------------


def streamed_in(loaded: Loaded) -> PreTrainedModel:
    """What the streamer will do, for all blocks at once."""
    named = dict(loaded.model.named_parameters())
    with Reader() as reader:
        for name, stored in loaded.sources.items():
            own = torch.empty(named[name].shape, dtype=named[name].dtype)
            read(reader, stored, own)
            named[name].data = own
    return loaded.model


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("build", PLAIN)
def test_blocks_stay_in_the_files_until_they_are_read(
    tmp_path: Path, build: Callable[[], PreTrainedModel], dtype: torch.dtype
) -> None:
    build().save_pretrained(tmp_path)
    loaded = load(tmp_path, dtype, streamed=lambda i: i == 1)
    named = dict(loaded.model.named_parameters())
    block = f"{find_blocks(loaded.model).name}.1."
    assert set(loaded.sources) == {name for name in named if name.startswith(block)}
    assert {i: x.parameters.keys() for i, x in loaded.blocks.items()} == {1: loaded.sources.keys()}
    for name, parameter in named.items():
        if name in loaded.sources:
            assert isinstance(parameter, nn.Parameter)
            assert set(parameter.stride()) <= {0}
            assert parameter.untyped_storage().nbytes() <= 8
            assert is_placeholder(parameter)
            assert parameter.isnan().all()
            assert loaded.sources[name].shape == tuple(parameter.shape)
        else:
            assert parameter.untyped_storage().nbytes() == parameter.nbytes, name
        assert not parameter.requires_grad
    with torch.inference_mode():
        assert loaded.model(IDS).logits.isnan().any()
    require_same(streamed_in(loaded), theirs(tmp_path, dtype))


def test_the_sources_are_the_files_own(tmp_path: Path) -> None:
    tiny.llama().save_pretrained(tmp_path, max_shard_size="50KB")
    loaded = load(tmp_path, streamed=lambda _: True)
    stored = stored_tensors(tmp_path)
    assert loaded.sources == {n: s for n, s in stored.items() if n.startswith("model.layers.")}
    assert load(tmp_path).sources == {}
    assert load(tmp_path).blocks == {}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("build", CONVERTED)
def test_what_the_files_hold_in_pieces_is_read_from_them_piece_by_piece(
    tmp_path: Path, build: Callable[[], PreTrainedModel], dtype: torch.dtype
) -> None:
    model = build()
    model.save_pretrained(tmp_path, max_shard_size="50KB")
    kept = stored_tensors(tmp_path)
    loaded = load(tmp_path, dtype, streamed=lambda _: True)
    blocks = find_blocks(loaded.model).name
    assert set(loaded.sources) == {
        name for name, p in loaded.model.named_parameters() if name.startswith(f"{blocks}.")
    }
    experts = [n for n in loaded.sources if ".experts." in n]
    assert bool(experts) == (build is not ctrl)
    assert not any(n in kept for n in experts)
    assert all(is_placeholder(dict(loaded.model.named_parameters())[n]) for n in loaded.sources)
    require_same(streamed_in(loaded), theirs(tmp_path, dtype))


def test_a_quantised_checkpoint_is_not_streamed(tmp_path: Path) -> None:
    tiny.llama().save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    config["quantization_config"] = {"quant_method": "fp8"}
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(EnvironmentProblem, match="its checkpoint is quantised") as caught:
        load(tmp_path, streamed=lambda _: True)
    assert "model.residency=device" in str(caught.value)


def test_a_large_model_on_meta_takes_no_memory() -> None:
    config = LlamaConfig(  # 7B
        vocab_size=32000,
        hidden_size=4096,
        intermediate_size=11008,
        num_hidden_layers=32,
        num_attention_heads=32,
    )
    model = model_on_meta(config, torch.bfloat16)
    assert {t.device.type for t in model.parameters()} == {"meta"}
    assert {t.dtype for t in model.parameters()} == {torch.bfloat16}
    assert math.isclose(sum(p.nbytes for p in model.parameters()), 13.5e9, rel_tol=0.01)
