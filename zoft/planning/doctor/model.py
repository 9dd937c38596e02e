"""`zoft doctor MODEL`: what works for a model, and why the rest does not, from its config alone.

The model is built without weights, and one row of tokens is run through its shapes. What only numbers
can show (rows that depend on each other, attention that sees later tokens) a run looks at before its
first step, and `zoft validate` with it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress

import torch
from torch import nn
from transformers import PreTrainedConfig, PreTrainedModel

from zoft.engine.probe.forwards.choose import PerturbedForwards
from zoft.engine.probe.forwards.experts import ExpertsForward
from zoft.engine.probe.forwards.generic import GenericForward
from zoft.engine.probe.leaves import Leaf, find_leaves
from zoft.engine.probe.perturbed import PerturbedParameters
from zoft.engine.probe.structures.table import STRUCTURES
from zoft.errors import EnvironmentProblem, RecipeError
from zoft.models.blocks import find_blocks, find_towers
from zoft.models.meta import build_outline, load_config, why_not_streamed
from zoft.models.mixers import MetaAnswers
from zoft.models.storage.names import split_revision
from zoft.models.storage.save import as_in_checkpoint
from zoft.models.storage.tracing import trace
from zoft.models.targets import find_targets
from zoft.models.trainable import parameter_ids, tuned_parameters
from zoft.recipe.schema import ModelSection
from zoft.recipe.sections.tune import TuneSection
from zoft.system.host_memory import gib
from zoft.system.silence import quiet

TOKENS = 4  # of the row that is run through the shapes

Line = tuple[str, str]  # what, and what is to be said of it


def doctor(name: str, *, trust_remote_code: bool = False) -> None:
    """Print what works for the model `name`: a folder, a .gguf file, or a Hub id (of which the config is
    fetched). Raises EnvironmentProblem if it has no config, or none of a decoder."""
    where, revision = split_revision(name)
    section = ModelSection(name=where, revision=revision, trust_remote_code=trust_remote_code)
    for what, said in decoder_lines(section):
        print(f"{what:16} {said}")
    print(
        "What only the weights show (whether rows depend on each other, attention is causal, padding "
        "needs a mask)\nis found by zoft validate RECIPE, and when a run begins."
    )


def decoder_lines(section: ModelSection) -> list[Line]:
    """What `zoft doctor MODEL` prints. Raises EnvironmentProblem."""
    config = load_config(section)
    model = _outline(config, section)
    lines: list[Line] = [
        ("model", _size(model)),
        ("full tuning", _said(lambda: _full(model))),
    ]
    if towers := find_towers(model):
        lines.append(("not tuned", f"{', '.join(towers)}: text does not pass through"))
    for targets in ("auto", "all-linear"):
        lines.append((f"LoRA {targets}", _said(lambda t=targets: _lora(model, t))))  # type: ignore[misc]
    lines += [("probes", said) for said in _probes(model)]
    lines += [
        ("streamed", _streamed(model, config, section)),
        ("checkpoint", _checkpoint(model)),
        ("tied", "the head is the table of embeddings" if _is_tied(model) else "no"),
    ]
    return lines


def _outline(config: PreTrainedConfig, section: ModelSection) -> PreTrainedModel:
    model = build_outline(
        config,
        TuneSection(),
        stored=torch.float32,
        trust_remote_code=section.trust_remote_code,
    )
    assert isinstance(model, PreTrainedModel)
    return model


def _said(find: Callable[[], str]) -> str:
    """What was found, or why it is refused."""
    try:
        return find()
    except (RecipeError, EnvironmentProblem) as error:
        return f"no: {error}".replace("\n", "; ")


def _size(model: PreTrainedModel) -> str:
    total = sum(p.numel() for p in model.parameters())
    return f"{type(model).__name__}, {total:,} weights, {gib(2 * total)} in bfloat16"


def _full(model: PreTrainedModel) -> str:
    tuned = tuned_parameters(model, TuneSection())
    with suppress(_Unknown):
        _leaves(model)  # refuses what no pass reads
    return f"{sum(p.numel() for p in tuned.values()):,} weights in {len(tuned)} tensors"


def _lora(model: PreTrainedModel, targets: str) -> str:
    tune = TuneSection.model_validate({"method": "lora", "target_modules": targets})
    found = find_targets(model, tune)
    return f"{', '.join(found.endings)} ({len(found.modules)} modules)"


class _Unknown(Exception):
    """The model looks at its numbers, which an outline does not have."""


def _leaves(model: PreTrainedModel) -> list[Leaf]:
    """What reads the parameters of full tuning. Raises RecipeError for those that nothing reads."""
    tuned = tuned_parameters(model, TuneSection())
    row = torch.zeros(1, TOKENS, dtype=torch.int64, device="meta")
    try:
        with quiet(), MetaAnswers():
            return find_leaves(model, tuned, parameter_ids(tuned), torch.float32, row)
    except RecipeError:
        raise
    except Exception as error:
        raise _Unknown from error


def _probes(model: PreTrainedModel) -> Iterator[str]:
    """Which modules a probe with rank-1 directions computes in place, and which with copies; vectors
    (norms, biases) are left out."""
    try:
        leaves = _leaves(model)
    except (_Unknown, RecipeError):
        yield "found out when a run begins"
        return
    chosen = PerturbedForwards(
        leaves, PerturbedParameters(leaves, torch.float32, torch.device("meta"))
    )
    forwards = [(leaf, chosen.of(leaf)) for leaf in leaves]
    forwards = [(leaf, forward) for leaf, forward in forwards if not leaf.only_vectors]
    copied = [leaf for leaf, forward in forwards if isinstance(forward, GenericForward)]
    in_place = Counter(
        "experts" if isinstance(forward, ExpertsForward) else type(leaf.module).__name__
        for leaf, forward in forwards
        if not isinstance(forward, GenericForward)
    )
    yield f"without copies of weights: {_counted(in_place)}"
    if copied:
        yield (
            f"with perturbed copies: {_counted(Counter(type(x.module).__name__ for x in copied))}, "
            f"{gib(max(map(_bytes, copied)))} at most"
        )
    yield f"directions: {_directions(leaves)}"


def _counted(kinds: Counter[str]) -> str:
    return ", ".join(f"{number} {kind}" for kind, number in kinds.most_common()) or "none"


def _bytes(leaf: Leaf) -> int:
    return sum(ref.parameter.numel() * 4 for ref in leaf.refs if ref.param is not None)


def _directions(leaves: Sequence[Leaf]) -> str:
    """How many tensors have rank-1 and how many dense directions."""
    tensors = {r.param: r.parameter for leaf in leaves for r in leaf.refs if r.param is not None}
    covers = STRUCTURES["rank1"].covers
    rank1 = [p for p in tensors.values() if covers(p.shape)]
    experts = sum(p.ndim > 2 for p in rank1)
    more = f" and {experts} tensors of experts" if experts else ""
    return (
        f"rank-1 for {len(rank1) - experts} matrices{more}, dense for "
        f"{len(tensors) - len(rank1)} others"
    )


def _streamed(model: PreTrainedModel, config: PreTrainedConfig, section: ModelSection) -> str:
    if why := why_not_streamed(config, section.trust_remote_code):
        return f"no: {why}"
    return _said(lambda: _blocks(model))


def _blocks(model: PreTrainedModel) -> str:
    blocks = find_blocks(model)
    largest = max(sum(p.numel() for p in block.parameters()) for block in blocks.modules)
    return (
        f"{len(blocks.modules)} blocks of {blocks.name}, the largest {gib(2 * largest)} in bfloat16"
    )


def _checkpoint(model: PreTrainedModel) -> str:
    """How the files' tensors become the model's."""
    traced = {n: trace(n, x.dtype, x.shape) for n, x in model.state_dict().items()}
    there = as_in_checkpoint(model, traced)
    if there is None:
        return "computed while it is loaded"
    whole = {name for name, x in there.items() if x.pieces and len(x.pieces) == 1}
    if len(there) == len(traced) and whole == set(there):
        return "as in the model"
    return f"{len(there)} tensors in the files, {len(traced)} in the model: read where they lie"


def _is_tied(model: PreTrainedModel) -> bool:
    head: nn.Module | None = model.get_output_embeddings()  # type: ignore[no-untyped-call]
    table = model.get_input_embeddings()
    return head is not None and getattr(head, "weight", None) is getattr(table, "weight", 0)
