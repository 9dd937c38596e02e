"""Models of two layers and a tokenizer, built in memory: same bits at every call, milliseconds.

`opt() llama() gpt2() qwen2() with_vision()` return models as `zoft.models.load` hands them over: in
eval mode, without gradients, without a cache; keywords change entries of their config. The ids of
`tokenizer()` are below VOCABULARY.
"""

from __future__ import annotations

from typing import Any, TypeVar

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import (
    Gemma3Config,
    Gemma3ForConditionalGeneration,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    MixtralConfig,
    MixtralForCausalLM,
    OPTConfig,
    OPTForCausalLM,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    Qwen2Config,
    Qwen2ForCausalLM,
)

VOCABULARY = 283  # a prime: no tile, chunk or word of 32 divides it
BOS, EOS, PAD = "<s>", "</s>", "<pad>"
BOS_ID, EOS_ID, PAD_ID = 0, 1, 2
WORDS = (" It", " was", " great", " bad")  # one token each; " terrible" is nine bytes, nine tokens
CHAT_TEMPLATE = (
    "{{ bos_token }}{% for m in messages %}[{{ m['role'] }}]{{ m['content'] }}{{ eos_token }}"
    "{% endfor %}{% if add_generation_prompt %}[assistant]{% endif %}"
)
_Model = TypeVar("_Model", bound=PreTrainedModel)
_IDS: dict[str, Any] = {"bos_token_id": BOS_ID, "eos_token_id": EOS_ID, "pad_token_id": PAD_ID}


def opt(seed: int = 0, dtype: torch.dtype = torch.float32, **changes: Any) -> OPTForCausalLM:
    """Learned positions with an offset, biases everywhere, tied embeddings."""
    config = OPTConfig(
        vocab_size=VOCABULARY,
        hidden_size=32,
        word_embed_proj_dim=32,
        ffn_dim=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=128,
        **_IDS,
    )
    return _build(OPTForCausalLM, config, seed, dtype, changes)


def llama(
    seed: int = 0, dtype: torch.dtype = torch.float32, tie: bool = False, **changes: Any
) -> LlamaForCausalLM:
    """RMS norms, rotary positions, grouped keys and values, a head of its own unless `tie`."""
    config = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=48,
        intermediate_size=80,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=256,
        tie_word_embeddings=tie,
        **_IDS,
    )
    return _build(LlamaForCausalLM, config, seed, dtype, changes)


def gpt2(seed: int = 0, dtype: torch.dtype = torch.float32, **changes: Any) -> GPT2LMHeadModel:
    """Conv1D (weights lie in x out), learned positions, tied embeddings."""
    config = GPT2Config(
        vocab_size=VOCABULARY, n_embd=32, n_layer=2, n_head=4, n_positions=128, **_IDS
    )
    return _build(GPT2LMHeadModel, config, seed, dtype, changes)


def qwen2(
    seed: int = 0, dtype: torch.dtype = torch.float32, tie: bool = True, **changes: Any
) -> Qwen2ForCausalLM:
    """LLaMA-like with biases in q, k, v; tied embeddings."""
    config = Qwen2Config(
        vocab_size=VOCABULARY,
        hidden_size=64,
        intermediate_size=96,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=256,
        tie_word_embeddings=tie,
        **_IDS,
    )
    return _build(Qwen2ForCausalLM, config, seed, dtype, changes)


def with_vision(seed: int = 0, dtype: torch.dtype = torch.float32, **changes: Any) -> Any:
    """Gemma 3 with a tower of images that is larger than its decoder."""
    common = {"num_attention_heads": 4, "num_hidden_layers": 2}
    config = Gemma3Config(
        text_config={
            "vocab_size": VOCABULARY, "hidden_size": 16, "intermediate_size": 32, "head_dim": 8,
            "num_key_value_heads": 2, "max_position_embeddings": 128, **common, **_IDS,
        },
        vision_config={
            "hidden_size": 32, "intermediate_size": 64, "image_size": 16, "patch_size": 4, **common,
        },
        mm_tokens_per_image=4,
        image_token_index=VOCABULARY - 1,
        boi_token_index=VOCABULARY - 2,
        eoi_token_index=VOCABULARY - 3,
        **_IDS,
    )  # fmt: skip
    return _build(Gemma3ForConditionalGeneration, config, seed, dtype, changes)


def mixtral(
    seed: int = 0, dtype: torch.dtype = torch.float32, **changes: Any
) -> MixtralForCausalLM:
    """Experts that lie apart in the files and together in the model."""
    config = MixtralConfig(
        vocab_size=VOCABULARY,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        num_local_experts=4,
        max_position_embeddings=256,
        **_IDS,
    )
    return _build(MixtralForCausalLM, config, seed, dtype, changes)


def tokenizer(*, bos: bool = True, chat_template: str | None = None) -> PreTrainedTokenizerFast:
    """Byte-level BPE: the 256 bytes and WORDS. With `bos` it puts BOS in front; it adds no EOS."""
    vocabulary = {BOS: BOS_ID, EOS: EOS_ID, PAD: PAD_ID}
    for byte in sorted(pre_tokenizers.ByteLevel.alphabet()):
        vocabulary[byte] = len(vocabulary)
    merges: list[tuple[str, str]] = []
    for word in WORDS:
        letters = "Ġ" + word[1:]  # byte-level spelling of the leading space
        for end in range(1, len(letters)):
            merge = (letters[:end], letters[end])
            if merge not in merges:
                merges.append(merge)
                vocabulary[letters[: end + 1]] = len(vocabulary)
    assert len(vocabulary) <= VOCABULARY
    core = Tokenizer(models.BPE(vocab=vocabulary, merges=merges))
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    if bos:
        core.post_processor = processors.TemplateProcessing(
            single=f"{BOS} $A", pair=f"{BOS} $A {BOS} $B", special_tokens=[(BOS, BOS_ID)]
        )
    return PreTrainedTokenizerFast(  # type: ignore[no-untyped-call]
        tokenizer_object=core,
        bos_token=BOS,
        eos_token=EOS,
        pad_token=PAD,
        model_max_length=256,
        chat_template=chat_template,
    )


def _build(
    kind: type[_Model],
    config: PreTrainedConfig,
    seed: int,
    dtype: torch.dtype,
    changes: dict[str, Any],
) -> _Model:
    config.update(changes)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model: Any = kind(config)
    model.config.use_cache = False
    built: _Model = model.to(dtype).eval().requires_grad_(False)
    return built
