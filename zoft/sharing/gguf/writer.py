"""A model as a GGUF file: what llama.cpp reads. For the families that transformers can read back.

The names of tensors come from llama.cpp's own `gguf` package. LLaMA's queries and keys are stored with
their rows in another order, because llama.cpp rotates neighbouring elements where transformers rotates
one half of a head against the other.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import gguf
import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from transformers import PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

from zoft.errors import RecipeError
from zoft.sharing.gguf.tokenizer import add_tokenizer

Kind = Literal["f32", "f16", "bf16", "q8_0"]

# transformers' model_type -> llama.cpp's architecture, where this file knows all that differs.
WRITTEN = {"llama": "llama", "mistral": "llama", "qwen2": "qwen2"}
# model_types whose name in llama.cpp is another than theirs without dashes.
OTHER_NAMES = {
    "cohere": "command-r",
    "deepseek_v2": "deepseek2",
    "deepseek_v3": "deepseek2",
    "gemma3_text": "gemma3",
    "gpt_bigcode": "starcoder",
    "mixtral": "llama",
    "olmo3": "olmo2",
    "phi": "phi2",
    **WRITTEN,
}
_FILE_TYPES = {"f32": "ALL_F32", "f16": "MOSTLY_F16", "bf16": "MOSTLY_BF16", "q8_0": "MOSTLY_Q8_0"}


def llama_cpp_name(model_type: str) -> str | None:
    """What llama.cpp calls the family; None if it does not know it."""
    names = {_plain(name): name for name in gguf.MODEL_ARCH_NAMES.values()}
    found: str | None = OTHER_NAMES.get(model_type, names.get(_plain(model_type)))
    return found


def why_not_written(config: PreTrainedConfig) -> str | None:
    """What of this model `write_gguf` has no way to say; None if it can write it."""
    found: Any = config
    if found.model_type not in WRITTEN:
        return f"zoft itself writes {', '.join(WRITTEN)}, not {found.model_type}"
    kind = (found.rope_parameters or {}).get("rope_type", "default")
    if kind != "default":
        return f"its rotary positions are scaled ({kind})"
    if getattr(found, "sliding_window", None):
        return "its attention looks back a limited way (sliding_window)"
    if getattr(found, "attention_bias", False) or getattr(found, "mlp_bias", False):
        return "it has biases that transformers does not read from GGUF"
    if found.hidden_act != "silu":
        return f"its activation is {found.hidden_act}"
    return None


def write_gguf(
    file: Path, name: str, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, kind: Kind
) -> None:
    """The model, which is in float32, and its tokenizer as one file. Matrices are rounded to `kind`.

    Raises RecipeError for a tokenizer that cannot be said in GGUF's words.
    """
    config: Any = model.config
    architecture = WRITTEN[config.model_type]
    writer: Any = gguf.GGUFWriter(file, architecture)
    try:
        _add_shape(writer, config, name)
        writer.add_file_type(gguf.LlamaFileType[_FILE_TYPES[kind]])
        writer.add_quantization_version(gguf.GGML_QUANT_VERSION)
        table: Any = model.get_input_embeddings()
        add_tokenizer(writer, tokenizer, table.weight.shape[0])
        arch = next(a for a, n in gguf.MODEL_ARCH_NAMES.items() if n == architecture)
        names = gguf.get_tensor_name_map(arch, config.num_hidden_layers)
        # Tied weights are one parameter, and llama.cpp takes the embedding where it finds no head.
        for own, parameter in model.named_parameters():
            stored = names.get_name(own, try_suffixes=(".weight", ".bias"))
            if stored is None:
                raise RecipeError(f"llama.cpp's {architecture} models have no tensor for {own}")
            tensor = parameter.detach()
            if architecture == "llama":
                tensor = _rotated(own, tensor, config)
            _add_tensor(writer, stored, tensor, kind)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
    finally:
        writer.close()


def interleaved(weight: Tensor, heads: int) -> Tensor:
    """Rows (or elements of a bias) of each head: i and i + half become neighbours."""
    half = weight.shape[0] // heads // 2
    apart = weight.reshape(heads, 2, half, *weight.shape[1:])
    return apart.transpose(1, 2).reshape(weight.shape)


def _rotated(name: str, tensor: Tensor, config: Any) -> Tensor:
    if ".q_proj." in name:
        return interleaved(tensor, config.num_attention_heads)
    if ".k_proj." in name:
        return interleaved(tensor, config.num_key_value_heads)
    return tensor


def _add_shape(writer: Any, config: Any, name: str) -> None:
    head = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    writer.add_name(name)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_key_length(head)
    writer.add_value_length(head)
    writer.add_rope_dimension_count(head)
    writer.add_rope_freq_base(config.rope_parameters["rope_theta"])
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_vocab_size(config.vocab_size)


def _add_tensor(writer: Any, name: str, tensor: Tensor, kind: Kind) -> None:
    """Vectors stay float32. q8_0 packs 32 elements of a row; a row that is no multiple stays float16."""
    values: npt.NDArray[np.float32] = tensor.float().contiguous().numpy()
    if kind == "f32" or tensor.ndim < 2:
        writer.add_tensor(name, values)
    elif kind == "f16" or (kind == "q8_0" and tensor.shape[-1] % 32):
        if not torch.isfinite(tensor.half()).all():
            raise RecipeError(f"{name} has numbers beyond float16: export with --type bf16 or f32")
        writer.add_tensor(name, values.astype(np.float16))
    else:
        packed = gguf.GGMLQuantizationType[kind.upper()]
        writer.add_tensor(name, gguf.quants.quantize(values, packed), raw_dtype=packed)


def _plain(name: str) -> str:
    return name.replace("-", "").replace("_", "")
