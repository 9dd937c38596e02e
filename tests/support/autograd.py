"""What autograd keeps of a forward pass, counted on a real model."""

from __future__ import annotations

import torch
from torch import Tensor
from transformers import PreTrainedModel


def kept_bytes(model: PreTrainedModel, rows: int, length: int) -> int:
    """Bytes of the tensors that a pass saves while all weights learn, each storage once and without
    the weights."""
    model.requires_grad_(True)
    weights = {p.untyped_storage().data_ptr() for p in model.parameters()}
    seen: dict[int, Tensor] = {}

    def pack(x: Tensor) -> Tensor:
        if x.untyped_storage().data_ptr() not in weights:
            seen.setdefault(x.untyped_storage().data_ptr(), x)
        return x

    ids = torch.zeros(rows, length, dtype=torch.int64)
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda x: x):
        model(input_ids=ids, use_cache=False)
    return sum(x.untyped_storage().nbytes() for x in seen.values())
