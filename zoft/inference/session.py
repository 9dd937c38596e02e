"""A model opened to be read: scored, asked, merged; nothing in it will move."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from peft import PeftModel
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from zoft.data.examples import Example, length
from zoft.engine.offload.stream import stream
from zoft.engine.probe.view import ProbedModel
from zoft.errors import EnvironmentProblem
from zoft.inference.locate import named
from zoft.models.adapters import load_adapter
from zoft.models.load import load_adapters_tokenizer, load_model, require_causal
from zoft.models.storage.adapter_files import CONFIG
from zoft.models.storage.fetch import local_safetensors, make_cache_folder
from zoft.planning.placement import Choice, budgets, choose
from zoft.planning.workload import shape_of
from zoft.recipe.resolved import Resolved
from zoft.recipe.schema import ModelSection
from zoft.recipe.sections.optimizer import own_keys
from zoft.recipe.sections.optimizers.mezo import MeZO
from zoft.recipe.sections.optimizers.rule import resolved_optimizer
from zoft.system.device import DTYPES
from zoft.system.host_memory import keep_freed_memory


@dataclass(frozen=True)
class Found:
    """What a command was pointed at: a base model in `folder`, the adapter on it, the tokenizer."""

    base: ModelSection
    folder: Path
    adapter: str | None
    tokenizer: PreTrainedTokenizerBase


def find(target: str, model: ModelSection, say: Callable[[str], None] = print) -> Found:
    """The files of a run, a checkpoint, an adapter or a model, fetched and converted if need be.

    Raises EnvironmentProblem.
    """
    base, adapter = named(target, model)
    try:
        folder = local_safetensors(
            base.name, base.revision, trust_remote_code=base.trust_remote_code, say=say
        )
    except EnvironmentProblem as error:  # it was named on the command line, not in a recipe
        way_out = f" (the base that {adapter}/{CONFIG} names: write there where it is now)"
        problem = str(error).removeprefix("model.name: ") + (way_out if adapter else "")
        raise EnvironmentProblem(problem) from error
    return Found(base, folder, adapter, load_adapters_tokenizer(adapter, folder, base))


@contextmanager
def opened(
    recipe: Resolved,
    found: Found,
    examples: Mapping[str, Sequence[Example]] | None,
    say: Callable[[str], None] = print,
) -> Iterator[ProbedModel]:
    """The model in the recipe's compute type, wherever it has room for these `examples` (by the name
    of their set in the recipe; None: for such of `data.max_length`). `recipe` has no `auto` left in
    its types. Raises ZoftError."""
    device, compute = torch.device(recipe.device), DTYPES[recipe.model.compute_dtype]
    # Stored as it was tuned, so that the score is the one that the run printed.
    full = found.adapter is None and recipe.tune.method == "full"
    place = _place(recipe, found.base, examples)
    loaded = load_model(
        found.folder,
        found.base,
        dtype=DTYPES[recipe.model.dtype] if full else compute,
        device=device,
        streamed=None if place.residency == "device" else place.streams,
    )
    keep_freed_memory()
    model: PreTrainedModel | PeftModel = loaded.model
    with ExitStack() as stack:
        streamer = None
        if loaded.blocks:
            codes = stack.enter_context(TemporaryDirectory(dir=make_cache_folder()))
            assert place.residency != "device"
            streamer = stream(
                loaded.blocks,
                [],
                (),
                loaded.sources,
                residency=place.residency,
                device=device,
                slots=place.slots,
                working=Path(codes, "working-copy.bin"),
                say=say,
            )
        try:
            if found.adapter:
                model = load_adapter(loaded.model, found.adapter, DTYPES[recipe.model.dtype])
            require_causal(found.base.name, loaded.model)
            yield ProbedModel(model, {}, {}, compute, torch.tensor([[1, 2, 3, 4]], device=device))
        finally:
            if streamer:
                streamer.close()


def _place(
    recipe: Resolved, base: ModelSection, examples: Mapping[str, Sequence[Example]] | None
) -> Choice:
    """Where the weights have room: nothing is tuned, so nothing is kept beside them."""
    stateless = MeZO.model_validate(own_keys({**dict(recipe.optimizer), "name": "mezo"}))
    model = recipe.model.model_copy(update={"name": base.name, "revision": base.revision})
    still = recipe.model_copy(update={"model": model, "optimizer": resolved_optimizer(stateless)})
    if examples:
        longest = max(examples.values(), key=lambda found: max(map(length, found)))
        examples = {"train": longest, **examples}
    return choose(still, shape_of(still, examples), *budgets(recipe))
