"""What a new prefix begins with: keys and values of real tokens, as MeZO has it (arXiv 2305.17333, E.4).

A prefix of noise is far from what attention ever sees, and zeroth-order steps find no way back from it.
"""

from __future__ import annotations

import torch
from peft import PeftModel
from peft.tuners.cartridge.utils import initialize_kv_prefix_from_past_key_values

from zoft.errors import RecipeError, ZoftError, first_line, lacks_memory
from zoft.models.adapters import virtual_tokens


@torch.no_grad()
def begin_with_activations(model: PeftModel, seed: int) -> None:
    """Fill a new prefix with the keys and values of random tokens, drawn from `seed` alone.

    The model then computes what its base would with these tokens in front. Takes a pass over
    `tune.virtual_tokens` tokens. Raises RecipeError for a model that keeps no plain keys and values,
    or does not read them.
    """
    base = model.get_base_model()
    words = base.config.get_text_config(decoder=True).vocab_size
    draw = torch.Generator().manual_seed(seed)
    tokens = torch.randint(0, words, (1, virtual_tokens(model)), generator=draw).to(base.device)
    try:
        cache = base(input_ids=tokens, use_cache=True).past_key_values
        initialize_kv_prefix_from_past_key_values(model, past_key_values=cache)
        model(input_ids=tokens, use_cache=False)
    except Exception as error:  # whatever a model raises that has another kind of cache
        if lacks_memory(error) or isinstance(error, ZoftError):
            raise
        raise RecipeError(
            f"tune.method: {type(base).__name__} takes no prefix: {first_line(error)}"
        ) from error
