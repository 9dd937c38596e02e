"""Models of known shapes with random weights, and the numbers of them that floors are computed from."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from plan import write_tokenizer
from transformers import AutoConfig, LlamaForCausalLM

from scripts.make_model import SHAPES, make
from zoft.models.empty_weights import model_on_meta

# A rehearsal's, whatever the family.
TINY: dict[str, Any] = {
    "vocab_size": 300, "hidden_size": 32, "intermediate_size": 64, "ffn_dim": 64,
    "word_embed_proj_dim": 32, "num_hidden_layers": 2, "num_attention_heads": 2,
    "num_key_value_heads": 2,
}  # fmt: skip


@dataclass(frozen=True)
class Counts:
    """Of a model: weights, those of the blocks, those that a pass multiplies with, and what attention
    takes a token and a token that it sees: layers times width."""

    weights: int
    blocks: int
    multiplied: int
    layers: int
    attended: int


def tiny_changes(shape: str) -> dict[str, Any]:
    """What makes a rehearsal's config of a shape's."""
    return {key: value for key, value in TINY.items() if key in SHAPES[shape]}


def config_of(shape: str, *, rehearse: bool, **more: Any) -> Any:
    """The config of a shape of scripts/make_model.py; in a rehearsal a tiny one of its family."""
    tiny = tiny_changes(shape) if rehearse else {}
    return AutoConfig.for_model(**SHAPES[shape] | tiny | more)


def counts(config: Any) -> Counts:
    """From a model without numbers."""
    model = model_on_meta(config, torch.bfloat16)
    weights = sum(p.numel() for p in model.parameters())
    blocks = sum(p.numel() for n, p in model.named_parameters() if ".layers." in n)
    layers, width = config.num_hidden_layers, config.hidden_size
    head = config.vocab_size * width
    return Counts(weights, blocks, blocks + head, layers, layers * width)


def write_model(folder: Path, shape: str, dtype: torch.dtype, *, rehearse: bool) -> None:
    """Files of the model, of random weights, with a tokenizer whose tokens are bytes."""
    tiny = tiny_changes(shape) if rehearse else {}
    make(folder, shape, {key: str(value) for key, value in tiny.items()}, dtype)
    write_tokenizer(folder)


def llama(config: Any, dtype: torch.dtype, device: torch.device) -> LlamaForCausalLM:
    """A LLaMA of random weights on the device."""
    torch.manual_seed(0)
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)  # else 7B weights would be float32 for a while
    try:
        with device:
            model: Any = LlamaForCausalLM(config)
    finally:
        torch.set_default_dtype(before)
    model.config.use_cache = False
    made: LlamaForCausalLM = model.eval().requires_grad_(False)
    return made
