"""A tiny model as a run holds it, resident or with its blocks streamed: same weights, same steps."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from support import tiny
from support.directions import directions
from support.offload.poison import PoisonedStreamer
from support.optimizers import optimizer as optimizer_of
from zoft.engine.estimator import Estimator, Losses
from zoft.engine.offload.executor import Executor
from zoft.engine.offload.homes import Files, Memory
from zoft.engine.offload.operations import Op
from zoft.engine.offload.stream import layouts_of
from zoft.engine.offload.streamer import Streamer
from zoft.engine.offload.weights import Streamed
from zoft.engine.optimizers.optimizer import Optimizer
from zoft.engine.optimizers.update import Resident, Weights, tuned_weights
from zoft.engine.probe.view import ProbedModel
from zoft.models.adapters import attach_adapter
from zoft.models.blocks import Block, find_blocks, is_placeholder, owned_parameters
from zoft.models.storage.safetensors import stored_tensors
from zoft.models.trainable import decays, parameter_ids, tuned_parameters
from zoft.recipe.sections.tune import TuneSection

CPU = torch.device("cpu")
LAYERS = 5
ROWS, WIDTH = 2, 6
TUNES = {
    "full": TuneSection(),
    "some": TuneSection(exclude=["*q_proj*", "*layernorm*"]),
    "few": TuneSection(include=["*layers.0.*", "*embed*"]),  # most blocks change nothing
    "lora": TuneSection(method="lora", r=2),
}
KEPT = ("exp_avg", "exp_avg_sq")


class Counting(Executor):
    """Keeps what was submitted, and fails where it is told to: `fails(op)`."""

    def __init__(self) -> None:
        super().__init__()
        self.ops: list[Op] = []
        self.fails: Callable[[Op], bool] = lambda _op: False

    def submit(self, op: Op, work: Callable[[], object]) -> None:
        self.ops.append(op)
        super().submit(op, self._failing if self.fails(op) else work)

    def _failing(self) -> None:
        raise OSError("no such luck")

    def count(self, kind: str) -> int:
        return sum(op.kind == kind for op in self.ops)


@dataclass
class Rig:
    """What steps are taken with. `losses`: of every probe of every step."""

    model: nn.Module
    weights: Weights
    estimator: Estimator
    optimizer: Optimizer
    streamer: Streamer | None
    losses: list[float] = field(default_factory=list)

    @property
    def executor(self) -> Counting:
        assert self.streamer is not None
        assert isinstance(self.streamer.executor, Counting)
        return self.streamer.executor

    def step(self, number: int) -> None:
        measurement = self.estimator.measure(number, self._loss)
        self.losses += measurement.loss_plus + measurement.loss_minus
        assert measurement.finite
        self.optimizer.update(measurement, 1e-2)

    def tensors(self) -> dict[str, Tensor]:
        """A copy of every tuned weight, moved by all updates, and of all that is kept of them."""
        found: dict[str, Tensor] = {}
        for kept in self.weights.visits():
            found |= {name: tensor.clone() for name, tensor in kept.items()}
            found |= {t.name: t.data.clone() for t in self.weights if not is_placeholder(t.data)}
        return found

    def _loss(self) -> Losses:
        ids = torch.arange(ROWS * WIDTH).view(ROWS, WIDTH) * 11 % tiny.VOCABULARY
        found = self.estimator.view.token_losses(ids, torch.arange(ids.numel()), ids.view(-1))
        sums = found.double().view(-1, ROWS, WIDTH).sum(-1)
        return Losses(sums, torch.full((ROWS,), float(WIDTH), dtype=torch.float64))


@contextmanager
def rig(
    folder: Path,
    build: Callable[..., Any] = tiny.llama,
    *,
    transfer: str | None = None,
    slots: int = 3,
    writeback: str = "device",
    resident: tuple[int, ...] = (2,),
    poison: bool = True,
    tune: str = "full",
    optimizer: str = "scalar",
    dtype: torch.dtype = torch.float32,
    compute: torch.dtype = torch.float32,
    paired: bool = False,
    executor: Executor | None = None,
) -> Iterator[Rig]:
    """Five layers of a tiny model, all resident without a `transfer`, else all blocks but `resident`."""
    section = TUNES[tune]
    model = deeper(build(dtype=compute if tune == "lora" else dtype))
    if tune == "lora":
        model = attach_adapter(model, section, seed=1)
    for number, (_, parameter) in enumerate(sorted(model.named_parameters())):
        torch.nn.init.normal_(
            parameter.data, 0.0, 0.05, generator=torch.Generator().manual_seed(number)
        )
    tuned = tuned_parameters(model, section)
    ids = parameter_ids(tuned)
    moving = tuned_weights(tuned, ids, decays(model))
    streamer: Streamer | None = None
    weights: Weights = Resident(moving)
    if transfer is not None:
        kept = KEPT if optimizer == "full" and tune != "lora" else ()
        save_file({n: p.data for n, p in model.named_parameters()}, folder / "model.safetensors")
        found = find_blocks(model)
        blocks = {
            i: Block(found.modules[i], {n: p for n, p in owned.items() if "lora_" not in n})
            for i, owned in enumerate(owned_parameters(model, found))
            if i not in resident
        }
        streamed = {n: p for block in blocks.values() for n, p in block.parameters.items()}
        inside = {
            n: next(t for t in moving if t.parameter is p)
            for n, p in streamed.items()
            if any(t.parameter is p for t in moving)
        }
        sources = stored_tensors(folder)
        layouts = layouts_of(blocks, inside, kept, sources)
        files = Files(layouts, sources, folder / "run" / "working.bin")
        streamer = (PoisonedStreamer if poison else Streamer)(
            blocks, inside, kept,
            Memory(layouts, files) if transfer in ("memory", "staged memory") else files,
            executor or Counting(), layouts=layouts, slots=slots, device=CPU,
            transfer=transfer.split()[0],  # type: ignore[arg-type]
            writeback=writeback,  # type: ignore[arg-type]
        )  # fmt: skip
        weights = Streamed(moving, streamer)
    try:
        view = ProbedModel(model, tuned, ids, compute, torch.tensor([[1, 2, 3, 4]]))
        estimator = Estimator(view, directions(3), perturbation=1e-2, paired=paired)
        yield Rig(model, weights, estimator, rule(weights, optimizer), streamer)
    finally:
        if streamer is not None:
            streamer.close()


def rule(weights: Weights, name: str) -> Optimizer:
    if name == "mezo":
        return optimizer_of(weights, "mezo", seed=3, weight_decay=0.1)
    keys: dict[str, Any] = {"moments": name, "window": 3, "fold_momentum": False}
    return optimizer_of(weights, "r-adazo", seed=3, weight_decay=0.1, **keys)


def deeper(model: Any) -> Any:
    """The same kind of model with more layers, its weights anew, in the same type."""
    config = copy.deepcopy(model.config)
    config.num_hidden_layers = LAYERS
    if getattr(config, "layer_types", None):
        config.layer_types = config.layer_types[:1] * LAYERS
    made = type(model)(config).to(model.dtype).eval().requires_grad_(False)
    made.config.use_cache = False
    return made
