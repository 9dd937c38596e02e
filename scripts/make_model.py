"""Write a model of a known shape with random weights, to measure with where no real one is at hand.

    python scripts/make_model.py llama-7b models/llama-7b
    python scripts/make_model.py opt-1.3b models/opt-1.3b --dtype float16 --tokenizer models/smol \\
        vocab_size=50304 num_hidden_layers=12

Weights are normal with deviation 0.02 (as models are initialised before training), vectors 1,
biases 0: a forward pass is finite, what it says is noise. The same seed gives the same files. One
tensor is in memory at a time; files hold 4 GB. key=value changes the config of the shape; the
tokenizer is copied if its vocabulary fits the model's. Exit 4 when the disk or a file refuses.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import zlib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import AutoConfig, AutoTokenizer, PreTrainedModel

from zoft.errors import ZoftError
from zoft.models.empty_weights import model_on_meta
from zoft.models.storage.save import save_tensor_by_tensor
from zoft.runs.checkpoint import require_space
from zoft.system.silence import quiet

SHARD_BYTES = 4_000_000_000
PIECE = 1 << 22  # numbers drawn from one generator, so that threads change nothing

_LLAMA: dict[str, Any] = {
    "model_type": "llama",
    "hidden_size": 4096,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "tie_word_embeddings": False,
}
_OPT: dict[str, Any] = {
    "model_type": "opt",
    "vocab_size": 50272,
    "max_position_embeddings": 2048,
}
SHAPES: dict[str, dict[str, Any]] = {
    "llama-135m": {  # as the demo's
        **_LLAMA,
        "vocab_size": 49152,
        "hidden_size": 576,
        "intermediate_size": 1536,
        "num_hidden_layers": 30,
        "num_attention_heads": 9,
        "num_key_value_heads": 3,
        "max_position_embeddings": 2048,
        "tie_word_embeddings": True,
    },
    "llama-1b": {
        **_LLAMA,
        "vocab_size": 32000,
        "hidden_size": 2048,
        "intermediate_size": 8192,
        "num_hidden_layers": 20,
        "num_key_value_heads": 8,
        "max_position_embeddings": 2048,
        "tie_word_embeddings": True,
    },
    "llama-7b": {
        **_LLAMA,
        "vocab_size": 32000,
        "intermediate_size": 11008,
        "max_position_embeddings": 4096,
    },
    "llama-3-8b": {
        **_LLAMA,
        "vocab_size": 128256,
        "intermediate_size": 14336,
        "num_key_value_heads": 8,
        "max_position_embeddings": 8192,
        "rope_parameters": {"rope_type": "default", "rope_theta": 500000.0},
        "bos_token_id": 128000,
        "eos_token_id": 128001,
    },
    "opt-1.3b": {
        **_OPT,
        "hidden_size": 2048,
        "word_embed_proj_dim": 2048,
        "ffn_dim": 8192,
        "num_hidden_layers": 24,
        "num_attention_heads": 32,
    },
    "opt-13b": {
        **_OPT,
        "hidden_size": 5120,
        "word_embed_proj_dim": 5120,
        "ffn_dim": 20480,
        "num_hidden_layers": 40,
        "num_attention_heads": 40,
    },
    "qwen3-30b-a3b": {
        "model_type": "qwen3_moe",
        "vocab_size": 151936,
        "hidden_size": 2048,
        "intermediate_size": 6144,
        "num_hidden_layers": 48,
        "num_attention_heads": 32,
        "num_key_value_heads": 4,
        "head_dim": 128,
        "num_experts": 128,
        "num_experts_per_tok": 8,
        "moe_intermediate_size": 768,
        "max_position_embeddings": 40960,
        "tie_word_embeddings": False,
    },
}


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Write a model with random weights.")
    parser.add_argument("shape", choices=SHAPES)
    parser.add_argument("folder", type=Path, help="must not be there yet")
    parser.add_argument("changes", nargs="*", metavar="key=value", help="changes to the config")
    parser.add_argument("--dtype", choices=("bfloat16", "float16", "float32"), default="bfloat16")
    parser.add_argument("--tokenizer", type=Path, help="a folder with one to copy")
    parser.add_argument("--seed", type=int, default=0)
    a = parser.parse_args(arguments)
    if wrong := [change for change in a.changes if "=" not in change]:
        parser.error(f"{wrong[0]} is not key=value")
    changes = dict(change.split("=", 1) for change in a.changes)
    try:
        make(a.folder, a.shape, changes, getattr(torch, a.dtype), a.tokenizer, a.seed)
    except (ZoftError, OSError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 4
    return 0


def make(
    folder: Path,
    shape: str,
    changes: dict[str, str],
    dtype: torch.dtype,
    tokenizer: Path | None = None,
    seed: int = 0,
) -> None:
    """Write the model. Raises ZoftError, OSError or ValueError."""
    config: dict[str, Any] = SHAPES[shape] | {key: _value(text) for key, text in changes.items()}
    model = model_on_meta(AutoConfig.for_model(**config), dtype)
    size = sum(p.nbytes for p in model.parameters())
    require_space(folder, size)
    folder.mkdir(parents=True)
    if tokenizer is not None:
        found: Any = AutoTokenizer.from_pretrained(tokenizer, local_files_only=True)
        if len(found) > config["vocab_size"]:
            raise ValueError(f"the tokenizer of {tokenizer} needs vocab_size={len(found)}")
        found.save_pretrained(folder)
    with quiet(), ThreadPoolExecutor(os.cpu_count()) as threads:
        save_tensor_by_tensor(folder, model, _weights(model, seed, threads), SHARD_BYTES)
    print(f"{folder}: {sum(p.numel() for p in model.parameters()):,} weights, {size / 1e9:.2f} GB")


def _weights(
    model: PreTrainedModel, seed: int, threads: ThreadPoolExecutor
) -> Iterator[tuple[str, Tensor]]:
    for name, like in model.named_parameters():
        values = torch.empty(like.shape, dtype=like.dtype)
        if values.dim() < 2:
            values.fill_(0.0 if name.endswith("bias") else 1.0)
        else:
            pieces: Any = torch.split(values.view(-1), PIECE)
            seeds = (zlib.crc32(f"{seed} {name} {i}".encode()) for i in range(len(pieces)))
            list(threads.map(_draw, pieces, seeds))
        yield name, values


def _draw(piece: Tensor, seed: int) -> None:
    piece.normal_(0.0, 0.02, generator=torch.Generator().manual_seed(seed))


def _value(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        return text


if __name__ == "__main__":
    sys.exit(main())
