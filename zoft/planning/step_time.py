"""How long a step takes, measured in seconds on a slice of the model: one block of it, and two.

The slice has random weights, the recipe's types and at most its shape; what a block more costs is the
blocks', the rest is everything else's. A larger batch or length than the slice can run in a moment is
scaled up from a smaller one.
"""

from __future__ import annotations

import copy
import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedConfig

from zoft.data.examples import Choice, Example, TextExample
from zoft.engine.build import estimator_for
from zoft.engine.objectives.objective import batch_losses, micro_batches, objective_for
from zoft.engine.offload.arenas import new_arena
from zoft.engine.optimizers.optimizer import optimizer_for
from zoft.engine.optimizers.update import Resident, tuned_weights
from zoft.engine.probe.view import ProbedModel
from zoft.models.adapters import attach_adapter
from zoft.models.empty_weights import model_on_meta
from zoft.models.meta import load_config
from zoft.models.storage.fetch import local_folder
from zoft.models.trainable import decays, parameter_ids, tuned_parameters
from zoft.planning.memory.footprint import footprint
from zoft.planning.workload import Shape, Texts
from zoft.recipe.resolved import Resolved
from zoft.system import accelerator
from zoft.system.device import DTYPES, make_repeatable
from zoft.system.host_memory import gib
from zoft.system.silence import quiet

# Multiplications and additions of the larger slice's step: about a second on two cores, and on a card.
WORK = {"cpu": 5e10}
WORK_OF_A_CARD = 5e13
PROBED = 256 * 2**20  # bytes that are copied or read to see how fast that goes


@dataclass(frozen=True, slots=True)
class Seconds:
    """Of one step at the recipe's batch and typical length: each block's passes, each block's update,
    and both of everything outside the blocks. `exact` of them, the last, learn by exact gradients."""

    block: float
    block_update: float
    rest: float
    rest_update: float
    exact: int = 0

    def step(self, blocks: int) -> float:
        """With all weights on the device."""
        again = 3 * self.exact * self.block  # run once more, and back at twice that
        return self.rest + self.rest_update + blocks * (self.block + self.block_update) + again


def passes(recipe: Resolved) -> int:
    """Passes through the model that a step takes, micro-batches included."""
    settings, train = recipe.optimizer, recipe.train
    one = _signs(recipe)
    if settings.sides == 2 and settings.paired is not False:
        one = settings.directions
    return one * -(-train.batch_size // train.micro_batch_size)


def _signs(recipe: Resolved) -> int:
    """How often a step's probes have each row pass through the model."""
    settings = recipe.optimizer
    return settings.directions + 1 if settings.sides == 1 else 2 * settings.directions


def calibrate(recipe: Resolved, shape: Shape, free: int) -> Seconds:
    """Take some steps with a slice. Raises MemoryError if it would not fit in `free` bytes, and what
    a model raises that cannot be cut down to two blocks."""
    slice_bytes = _slice_bytes(recipe, shape, 2)
    if slice_bytes > free:
        raise MemoryError(f"two blocks take {gib(slice_bytes)}")
    rows, length = _affordable(recipe, shape)
    one, two = (_times(recipe, shape, blocks, rows, length) for blocks in (1, 2))
    typical = recipe.train.batch_size * shape.train.rows * shape.train.typical
    scale = typical / (rows * shape.train.rows * length)
    share = _share_of_a_block(shape)
    block, update = (_more(a, b, share) for a, b in zip(one, two, strict=True))
    probed = any(w.tuned for w in shape.weights)
    if not probed:  # one plain pass takes the place of the probes'
        scale /= _signs(recipe)
    return Seconds(
        block=scale * block,
        block_update=update * probed,
        rest=scale * max(0.0, one[0] - block),
        rest_update=max(0.0, one[1] - update) * probed,
        exact=len({w.block for w in shape.weights if w.exact} - {None}),
    )


def _more(one: float, two: float, share: float) -> float:
    """What the second block added; on a busy machine at least half of what its weights stand for."""
    return max(two - one, share * one / 2)


def _share_of_a_block(shape: Shape) -> float:
    """Of the multiplications with one block: lookups cost none, experts as many as a token goes to, and
    a head that sees few positions little."""
    first = sum(shape.computed(w) for w in shape.weights if w.block == 0)
    head = shape.hidden * shape.vocabulary if shape.train.scored > shape.train.longest / 2 else 0
    return first / max(1, first + head)


def bandwidth(recipe: Resolved, residency: str) -> float | None:
    """Bytes a second from where streamed blocks wait; None if there is nothing to try it on."""
    if residency == "host" and recipe.device != "cpu":
        return _copying(torch.device(recipe.device))
    if residency == "disk":
        folder = local_folder(recipe.model.name)
        files = list(folder.glob("*.safetensors")) if folder else []
        return _reading(max(files, key=lambda x: x.stat().st_size)) if files else None
    return None


def _slice_bytes(recipe: Resolved, shape: Shape, blocks: int) -> int:
    found = footprint(recipe, shape, "disk" if shape.blocks else "device", tuple(range(blocks)))
    names = ("embeddings, norm, head", "resident blocks", "adapter", "moments", "scratch")
    return sum(x.device for x in found.items if x.name in names)


def _affordable(recipe: Resolved, shape: Shape) -> tuple[int, int]:
    """Rows and tokens of a row, at most the recipe's, whose step is about WORK."""
    kind = torch.device(recipe.device).type
    weights = sum(shape.computed(w) for w in shape.weights if (w.block or 0) < 2)
    tokens = WORK.get(kind, WORK_OF_A_CARD) / (2 * weights * 2 * recipe.optimizer.directions)
    length = max(8, min(shape.train.typical, int(tokens / shape.train.rows)))
    rows = max(1, min(recipe.train.micro_batch_size, int(tokens / shape.train.rows / length)))
    return rows, length


def _times(
    recipe: Resolved, shape: Shape, blocks: int, rows: int, length: int
) -> tuple[float, float]:
    """Seconds of a step's passes and of its update, with a model of so many blocks."""
    device = torch.device(recipe.device)
    make_repeatable(device)
    small = {"batch_size": rows, "micro_batch_size": rows}
    recipe = recipe.model_copy(update={"train": recipe.train.model_copy(update=small)})
    optimizer = recipe.optimizer
    if optimizer.paired == "auto":
        optimizer = optimizer.model_copy(update={"paired": optimizer.sides == 2})
    # The slice has the first blocks only, and they stand for those that learn.
    tune = recipe.tune.model_copy(update={"layers": None, "tail": "none"})
    recipe = recipe.model_copy(update={"optimizer": optimizer, "tune": tune})
    model = _slice(recipe, load_config(recipe.model), blocks, device)
    parameters = tuned_parameters(model, recipe.tune)
    ids = parameter_ids(parameters)
    example = torch.tensor([[1, 2, 3, 4]], device=device)
    view = ProbedModel(model, parameters, ids, DTYPES[recipe.model.compute_dtype], example)
    estimator = estimator_for(recipe, view)
    rule = optimizer_for(
        recipe.optimizer, recipe.seed, Resident(tuned_weights(parameters, ids, decays(model)))
    )
    objective = objective_for(recipe.objective.name)
    examples = [_example(shape.train, recipe.objective.name, length)] * rows
    batches = micro_batches(objective, examples, rows, device)
    found = []
    for step in (1, 2, 3):  # the first compiles, and allocates
        measured = None

        def probe(step: int = step) -> None:
            nonlocal measured
            measured = estimator.measure(step, lambda: batch_losses(objective, view, batches))

        first = _timed(probe, device)
        assert measured is not None
        found.append((first, _timed(lambda: rule.update(measured, 0.0), device)))  # noqa: B023
    return min(x for x, _ in found[1:]), min(x for _, x in found[1:])


def _timed(work: Callable[[], object], device: torch.device) -> float:
    begun = time.perf_counter()
    work()
    accelerator.synchronize(device)
    return time.perf_counter() - begun


def _slice(
    recipe: Resolved, config: PreTrainedConfig, blocks: int, device: torch.device
) -> nn.Module:
    """The first blocks of the model, with weights that are noise."""
    config = copy.deepcopy(config)
    text: Any = config.get_text_config(decoder=True)
    text.num_hidden_layers = blocks
    if getattr(text, "layer_types", None):
        text.layer_types = text.layer_types[:blocks]
    adapter = recipe.tune.method != "full"
    stored = recipe.model.compute_dtype if adapter else recipe.model.dtype
    with quiet():
        meta = model_on_meta(config, DTYPES[stored], recipe.model.trust_remote_code)
    model: Any = meta.to_empty(device=device)
    model.tie_weights()
    noise = torch.randn(1 << 16, generator=torch.Generator().manual_seed(0)) / 50
    for tensor in (*model.parameters(), *model.buffers()):
        flat = tensor.detach().view(-1)
        if tensor.is_floating_point():
            whole = noise.to(tensor.dtype).to(device).repeat(-(-flat.numel() // noise.numel()))
            flat.copy_(whole[: flat.numel()])
        else:
            flat.zero_()
    model.eval().requires_grad_(False)
    model.config.use_cache = False
    tuned: nn.Module = model
    if adapter:
        tuned = attach_adapter(model, recipe.tune, recipe.seed, DTYPES[recipe.model.dtype])
    return tuned


def _example(texts: Texts, objective: str, length: int) -> Example:
    scored = min(texts.scored, length - 1)
    if objective == "lm":
        return TextExample((1,) * length, tuple(range(length - max(1, scored), length)))
    option = max(1, scored)
    options = tuple((i + 1,) * option for i in range(max(2, texts.rows)))
    return Choice((1,) * max(1, length - option), options, 0)


def _copying(device: torch.device) -> float:
    """As blocks are: from memory that is pinned, where the system allows it."""
    source, target = new_arena(PROBED, torch.device("cpu")), new_arena(PROBED, device)
    pinned = accelerator.pin(source, device)
    times = [_timed(lambda: target.copy_(source, non_blocking=True), device) for _ in range(4)]
    if pinned:
        accelerator.unpin(source, device)
    return PROBED / min(times[1:])


def _reading(file: Path) -> float:
    """Past the page cache, as far as the system lets it go."""
    size = min(PROBED, file.stat().st_size)
    buffer = bytearray(8 * 2**20)
    handle = os.open(file, os.O_RDONLY)
    try:
        os.posix_fadvise(handle, 0, 0, os.POSIX_FADV_DONTNEED)
        begun, at = time.perf_counter(), 0
        while at < size:
            at += os.preadv(handle, [buffer], at)
        return at / (time.perf_counter() - begun)
    finally:
        os.posix_fadvise(handle, 0, 0, os.POSIX_FADV_DONTNEED)
        os.close(handle)
