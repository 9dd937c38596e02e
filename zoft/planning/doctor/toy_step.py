"""Steps of a toy model that is resident, and of the same one with its blocks in the host's memory."""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Literal

import torch
from torch import Tensor, nn
from transformers import LlamaConfig, LlamaForCausalLM

from zoft.engine.estimator import Estimator, Losses
from zoft.engine.offload.stream import stream
from zoft.engine.offload.weights import Streamed
from zoft.engine.optimizers.optimizer import optimizer_for
from zoft.engine.optimizers.update import Resident, Weights, tuned_weights
from zoft.engine.probe.structures.table import directions_of
from zoft.engine.probe.view import ProbedModel
from zoft.models.blocks import is_placeholder
from zoft.models.load import load_model
from zoft.models.trainable import decays, parameter_ids, tuned_parameters
from zoft.recipe.schema import ModelSection
from zoft.recipe.sections.optimizers.radazo import RAdaZO
from zoft.recipe.sections.tune import TuneSection
from zoft.system.device import DTYPES, fast_dtype
from zoft.system.silence import quiet

STEPS = 2  # the second one reads what the first one wrote back
ROWS, TOKENS = 4, 16
CONFIG: dict[str, Any] = {
    "vocab_size": 512, "hidden_size": 128, "intermediate_size": 256, "num_hidden_layers": 5,
    "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 64,
}  # fmt: skip
RULE = RAdaZO.model_validate({"structure": "rank1", "moments": "full"})


def steps_agree(device: torch.device, seed: int) -> bool:
    """Whether both ways end in the same bytes. Raises what the device or its libraries raise."""
    with TemporaryDirectory() as name:
        folder = Path(name)
        with quiet(), torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            LlamaForCausalLM(LlamaConfig(**CONFIG)).save_pretrained(folder)
        resident = _after_steps(folder, device, seed, "device")
        streamed = _after_steps(folder, device, seed, "host")
    return resident.keys() == streamed.keys() and all(
        torch.equal(x, streamed[name]) for name, x in resident.items()
    )


def _after_steps(
    folder: Path, device: torch.device, seed: int, residency: Literal["device", "host"]
) -> dict[str, Tensor]:
    """All weights and moments in the end, on the CPU, as bytes."""
    dtype = DTYPES[fast_dtype(str(device))]
    host = residency == "host"
    section = ModelSection(name=str(folder))
    streamed = (lambda _: True) if host else None
    loaded = load_model(folder, section, dtype=dtype, device=device, streamed=streamed)
    parameters = tuned_parameters(loaded.model, TuneSection())
    ids = parameter_ids(parameters)
    tuned = tuned_weights(parameters, ids, decays(loaded.model))
    weights: Weights = Resident(tuned)
    with ExitStack() as stack:
        if host:
            streamer = stream(
                loaded.blocks, tuned, RULE.state(), loaded.sources, residency="host",
                device=device, slots=2, working=folder / "working.bin", say=lambda _: None,
            )  # fmt: skip
            stack.callback(streamer.close)
            weights = Streamed(tuned, streamer)
        _take_steps(loaded.model, parameters, ids, weights, device, dtype, seed)
        found: dict[str, Tensor] = {}
        for kept in weights.visits():
            here = {t.name: t.data for t in tuned if not is_placeholder(t.data)}
            found |= {n: x.cpu().view(torch.uint8).clone() for n, x in {**kept, **here}.items()}
        return found


def _take_steps(
    model: nn.Module,
    parameters: dict[str, nn.Parameter],
    ids: dict[str, int],
    weights: Weights,
    device: torch.device,
    dtype: torch.dtype,
    seed: int,
) -> None:
    example = torch.tensor([[1, 2, 3, 4]], device=device)
    view = ProbedModel(model, parameters, ids, dtype, example)
    estimator = Estimator(view, directions_of(RULE, seed), perturbation=1e-2)
    optimizer = optimizer_for(RULE, seed, weights)
    tokens = torch.arange(ROWS * TOKENS, device=device).view(ROWS, TOKENS) * 11 % 512
    every = torch.arange(tokens.numel(), device=device)
    counts = torch.full((ROWS,), float(TOKENS), dtype=torch.float64, device=device)

    def losses() -> Losses:
        found = view.token_losses(tokens, every, tokens.view(-1))
        return Losses(found.double().view(-1, ROWS, TOKENS).sum(-1), counts)

    for step in range(1, STEPS + 1):
        optimizer.update(estimator.measure(step, losses), 1e-2)
