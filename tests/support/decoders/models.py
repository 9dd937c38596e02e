"""Tiny decoders with random weights: every tensor of them, norms and biases too."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from transformers import (
    AutoModelForCausalLM,
    MambaConfig,
    MambaForCausalLM,
    PreTrainedConfig,
    PreTrainedModel,
)

from support.decoders.configs import tiny_config

_AUTO: Any = AutoModelForCausalLM  # its methods carry no types
MOST_WEIGHTS = 8_000_000
# Decays, time steps and gates that are kept as logarithms: random numbers of any size overflow.
_DELICATE = ("A_log", "dt_bias", "recurrent_param", "time_decay", "time_first", "decay", "sinks")


def build(name: str, seed: int = 0) -> PreTrainedModel:
    """A tiny model of that architecture: float32, eval mode, without gradients and without a cache."""
    config = tiny_config(name)
    _require_tiny(config)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model: Any = _AUTO.from_config(config, dtype=torch.float32)
    generator = torch.Generator().manual_seed(seed)
    parameters = dict(model.named_parameters())
    tensors = {**parameters, **_kept_buffers(model, parameters)}
    for key, tensor in tensors.items():
        if tensor.is_floating_point():
            _randomise(key, tensor.data, generator)
    model.config.use_cache = False
    built: PreTrainedModel = model.eval().requires_grad_(False)
    return built


def wide_mamba() -> MambaForCausalLM:
    """Two blocks as wide as mamba-130m's: enough for torch's threads to share a product."""
    config = MambaConfig(hidden_size=768, num_hidden_layers=2, vocab_size=288, use_cache=False)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model: Any = MambaForCausalLM(config)
    built: MambaForCausalLM = model.eval().requires_grad_(False)
    return built


def _require_tiny(config: PreTrainedConfig) -> None:
    """Raise ValueError for a config that was not shrunk, before it takes all memory."""
    with torch.device("meta"):
        size = sum(p.numel() for p in _AUTO.from_config(config).parameters())
    if size > MOST_WEIGHTS:
        raise ValueError(f"the config does not shrink: {size:,} weights")


def _kept_buffers(model: nn.Module, parameters: dict[str, Any]) -> dict[str, Tensor]:
    """The buffers that a checkpoint holds: correction biases of routers, say; without MiniMax's decays,
    which make its attention causal."""
    kept = {key for key in model.state_dict() if key not in parameters and "decay" not in key}
    return {key: x for key, x in model.named_buffers() if key in kept}


def _randomise(name: str, x: Tensor, generator: torch.Generator) -> None:
    """Matrices keep the size of what they multiply, vectors move by a third."""
    noise = torch.randn(x.shape, generator=generator)
    own = name.rpartition(".")[2]
    if x.ndim < 2 or any(part in own for part in _DELICATE):
        x.add_(noise, alpha=0.1 if any(part in own for part in _DELICATE) else 0.3)
    elif "embed" in name or "wte" in name:
        x.copy_(0.3 * noise)
    else:
        inputs = x[0].numel() if x.ndim < 3 else min(x[0].shape)
        x.copy_(noise / inputs**0.5)
