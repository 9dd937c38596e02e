"""A run's model as it was before the first step, and what moves it: all from its journal's header."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from peft import PeftModel
from pydantic import TypeAdapter, ValidationError
from torch import nn
from transformers import PreTrainedModel

from zoft.engine.offload.stream import stream
from zoft.engine.offload.weights import Streamed
from zoft.engine.optimizers.optimizer import Optimizer, optimizer_for
from zoft.engine.optimizers.update import Resident, Tuned, Weights
from zoft.engine.probe.structures.table import layout_of
from zoft.engine.tail.head import FILE, HeadRows
from zoft.engine.tail.moving import END, put_weights
from zoft.errors import EnvironmentProblem
from zoft.models.adapters import load_adapter
from zoft.models.load import fingerprint, load_model
from zoft.models.storage.fetch import local_safetensors
from zoft.models.storage.names import split_revision
from zoft.models.storage.safetensors import stored_tensors
from zoft.planning.placement import MARGIN
from zoft.recipe.load import load_recipe
from zoft.recipe.schema import ModelSection
from zoft.recipe.sections.optimizer import RULES, AnyOptimizer, own_keys
from zoft.runs.artefact import START
from zoft.runs.folder import RunFolder
from zoft.runs.journal import Header, missing_entries
from zoft.system import accelerator
from zoft.system.device import DTYPES
from zoft.system.host_memory import free_host_bytes, gib
from zoft.system.philox import LAYOUT, LAYOUTS

_OPTIMIZER: TypeAdapter[AnyOptimizer] = TypeAdapter(AnyOptimizer)


@dataclass(frozen=True)
class Rebuilt:
    """A model as it was before the first step, and what moves it."""

    model: PreTrainedModel | PeftModel
    weights: Weights
    optimizer: Optimizer

    @property
    def result_bytes(self) -> int:
        """What its files will take: an adapter's are its own weights, a model's all of them."""
        adapter = [tuned.parameter for tuned in self.weights]
        written = adapter if isinstance(self.model, PeftModel) else self.model.parameters()
        return sum(parameter.nbytes for parameter in written)


def require_known(header: Header, journal: Path) -> None:
    """Raises EnvironmentProblem for a header with something missing, or that this zoft does not know."""
    if missing := missing_entries(header):
        raise EnvironmentProblem(f"{journal}: its header lacks {', '.join(missing)}")
    layout, shapes = header["layout"], [shape for _, _, shape, _ in header["parameters"]]
    if layout not in LAYOUTS:
        raise EnvironmentProblem(
            f"{journal} has directions of layout {layout}, which this zoft does not draw: upgrade zoft"
        )
    if layout == LAYOUT and layout_of(header["optimizer"].get("structure"), shapes) != LAYOUT:
        raise EnvironmentProblem(
            f"{journal} moved the weights of experts along dense directions, which zoft no longer draws "
            f"for them: replay it with zoft {header['zoft']}, which wrote it"
        )
    if header["dtype"] not in DTYPES:
        raise EnvironmentProblem(f"{journal} is of {header['dtype']} weights: upgrade zoft")


def base_of(header: Header, journal: Path, base: str | None) -> tuple[ModelSection, Path]:
    """The base model's folder, once its bytes are known to be those that the run began with."""
    named = header["base"]
    name, revision = split_revision(base) if base else (named["name"], named["revision"])
    run = RunFolder(journal.parent)
    trusted = run.resolved.is_file() and load_recipe(run.resolved).model.trust_remote_code
    try:
        where = local_safetensors(name, revision, trust_remote_code=trusted)
    except EnvironmentProblem as error:
        now = load_recipe(run.resolved).model if run.resolved.is_file() else None
        if base is None and now is not None and now.name != name:  # moved, and resumed since
            return base_of(header, journal, now.name)
        reason = str(error).removeprefix("model.name: ")
        raise EnvironmentProblem(
            f"the base model: {reason}; --base PATH says where it is"
        ) from error
    section = ModelSection(name=name, revision=revision, trust_remote_code=trusted)
    found = fingerprint(where)
    if found != named["sha256"]:
        raise EnvironmentProblem(
            f"{name} is not the base model of this journal: its config and weights have sha256 "
            f"{found[:12]}, those of {named['name']} had {named['sha256'][:12]}"
            + ("" if base else "; --base PATH names another")
        )
    return section, where


def rebuild(
    header: Header,
    journal: Path,
    section: ModelSection,
    where: Path,
    target: Path,
    stack: ExitStack,
    step: int,
) -> Rebuilt:
    """The model before the first step, in memory if it fits, else block by block from its files; what
    no journal holds is as it is after `step`.

    An adapter needs none of the base's weights: blocks that do not fit stay where they are.
    """
    settings = _settings(header, journal)
    start = journal.parent / START
    adapted = any("lora_" in name for name, *_ in header["parameters"])
    if header.get("tune", {}).get("method", "full") != "full":
        adapted = True
    solved = header.get("solved_head", False)
    if solved and not (start / FILE).is_file():
        raise EnvironmentProblem(
            f"{journal} begins with solved rows of the head: {start} must hold {FILE}"
        )
    if adapted and not start.is_dir():
        raise EnvironmentProblem(
            f"{journal} is an adapter's: {start} must hold the one that it starts from"
        )
    own = DTYPES[header["dtype"]]
    place, fits = _device(header, settings, where, own)
    loaded = load_model(
        where, section, dtype=own, device=place, streamed=None if fits else lambda _: True
    )
    model: PreTrainedModel | PeftModel = loaded.model
    if adapted:
        model = load_adapter(model, start, own)
    if solved:
        HeadRows.read(start).put(model)
    if header.get("tune", {}).get("tail", "none") not in ("none", "head"):
        if not fits:
            raise EnvironmentProblem(f"{journal}: its last blocks moved alone; the model must fit")
        put_weights(journal.parent / END, model, step)
    tuned = _tuned(model, header, journal)
    weights: Weights = Resident(tuned)
    if loaded.blocks and not adapted:
        target.parent.mkdir(parents=True, exist_ok=True)
        working = stack.enter_context(TemporaryDirectory(dir=target.parent, prefix=".replay-"))
        streamer = stream(
            loaded.blocks, tuned, settings.state(), loaded.sources, residency="disk", device=place,
            slots=2, working=Path(working, "working-copy.bin"), say=print,
        )  # fmt: skip
        stack.callback(streamer.close)
        weights = Streamed(tuned, streamer)
    return Rebuilt(model, weights, optimizer_for(settings, header["seed"], weights))


def _settings(header: Header, journal: Path) -> AnyOptimizer:
    try:
        return _OPTIMIZER.validate_python(own_keys(header["optimizer"]))
    except ValidationError as error:
        place = [str(part) for part in error.errors()[0]["loc"] if part not in RULES]
        what = ".".join(place) or "name"  # a rule that there is not
        raise EnvironmentProblem(
            f"{journal} was written by zoft {header['zoft']}, and its optimizer.{what} is not one that "
            "this zoft knows: upgrade zoft"
        ) from error


def _device(
    header: Header, settings: AnyOptimizer, where: Path, own: torch.dtype
) -> tuple[torch.device, bool]:
    """The first of accelerator and CPU that holds all weights and moments; else the CPU, and that they
    don't fit."""
    numbers = sum(_numel(stored.shape) for stored in stored_tensors(where).values())
    moved = sum(_numel(shape) for _, _, shape, _ in header["parameters"])
    size = numbers * own.itemsize + 4 * len(settings.state()) * moved
    card = accelerator.first()
    if card and size < accelerator.memory_bytes(card)[0] * (1 - MARGIN):
        return torch.device(card), True
    free = free_host_bytes() * (1 - MARGIN)
    if size >= free:
        print(f"{gib(size)} do not fit into {gib(free)} of memory: block by block, from the disk")
    return torch.device("cpu"), size < free


def _numel(shape: Sequence[int]) -> int:
    return torch.Size(shape).numel()


def _tuned(model: nn.Module, header: Header, journal: Path) -> list[Tuned]:
    """The tuned weights by the header's names, numbers and shapes. Raises EnvironmentProblem."""
    found = dict(model.named_parameters())
    tuned = []
    for name, param, shape, decays in header["parameters"]:
        there = list(found[name].shape) if name in found else None
        if there != shape:
            has = "has no such parameter" if there is None else f"has shape {there}"
            raise EnvironmentProblem(
                f"{journal} tunes {name} {shape}, and the model here {has}: it was written by zoft "
                f"{header['zoft']}, perhaps with other libraries"
            )
        tuned.append(Tuned(name, found[name], param, decays))
    return tuned
