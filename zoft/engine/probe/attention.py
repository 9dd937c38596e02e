"""Attention's scores, rows * heads * T * T numbers, must not be what fills the memory.

transformers' eager attention stores them all. So does torch's scaled_dot_product_attention in its
MATH backend, to which it turns without a word when no other backend takes the inputs.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from transformers import PreTrainedConfig, masking_utils

from zoft.errors import RecipeError

MAX_SCORES = 1 << 30  # bytes of one layer's scores in float32


@contextmanager
def bounded_attention(model_config: PreTrainedConfig, rows: int, length: int) -> Iterator[None]:
    """Inside, a forward pass over (rows, length) token ids stores no scores beyond MAX_SCORES.

    It does nothing where they are fewer. Raises RecipeError where the model cannot do without them.
    """
    config = model_config.get_text_config(decoder=True)
    size = rows * _heads(config) * length * length * 4
    if size <= MAX_SCORES:
        yield
        return
    too_large = RecipeError(
        f"this model's attention would store the scores of {rows} rows of {length} tokens, "
        f"{size / 2**30:.1f} GiB in each layer, where {MAX_SCORES / 2**30:g} GiB is the limit: lower "
        "train.micro_batch_size, data.max_length or eval.batch_size"
    )
    if config._attn_implementation == "eager":
        raise too_large
    # The switch holds for CPUs as well.
    before: bool = torch.backends.cuda.math_sdp_enabled()  # type: ignore[no-untyped-call]
    torch.backends.cuda.enable_math_sdp(False)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # each backend's reasons to refuse
            yield
    except RuntimeError as error:
        if "No available kernel" in str(error) or "No viable backend" in str(error):
            raise too_large from error
        raise
    finally:
        torch.backends.cuda.enable_math_sdp(before)


@contextmanager
def one_text_a_row() -> Iterator[None]:
    """Inside, transformers takes each row for one text, as ours are. Without a mask it would look for
    several in the positions, and the host would wait for the device in every pass."""
    library: Any = masking_utils
    look = library.find_packed_sequence_indices
    library.find_packed_sequence_indices = lambda _position_ids: None
    try:
        yield
    finally:
        library.find_packed_sequence_indices = look


def _heads(config: PreTrainedConfig) -> int:
    """The most that a layer has; 0 for a model without attention."""
    layers = config.per_layer_config if config.is_heterogeneous else [config]
    found = [getattr(layer, "num_attention_heads", None) or 0 for layer in layers]
    return max(max(heads) if isinstance(heads, list | tuple) else heads for heads in found)
