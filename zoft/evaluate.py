"""`zoft eval`: the recipe's eval and test sets on a run, a checkpoint, an adapter or a model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from peft import PeftModel
from transformers import PreTrainedModel

from zoft.data.examples import Example, length
from zoft.data.sets import prepare
from zoft.errors import RecipeError
from zoft.interrupts import stop_on_signals
from zoft.machine import DTYPES, make_repeatable, resolve
from zoft.memory import (
    hand_back_freed_memory,
    keep_freed_memory,
    memory_explained,
    peak_memory_bytes,
)
from zoft.models.adapters import load_adapter
from zoft.models.convert import cache_folder, local_safetensors
from zoft.models.load import load_model, load_tokenizer, require_causal
from zoft.objectives.objective import objective_for
from zoft.offload.stream import stream
from zoft.recipe.defaults import with_defaults
from zoft.recipe.load import load_recipe
from zoft.recipe.schema import ModelSection, Recipe
from zoft.residency import Choice, budgets, choose
from zoft.scoring import needs_mask, require_fits, score
from zoft.shape import shape_of
from zoft.target import named
from zoft.tracking import in_words
from zoft.zo.probe import View


def evaluate(
    target: str, source: str, overrides: Sequence[str] = ()
) -> dict[str, dict[str, float]]:
    """Print, and return by set, what `target` scores on the recipe's eval and test sets.

    Raises ZoftError.
    """
    recipe = resolve(with_defaults(load_recipe(source, overrides)))
    if not (recipe.data.eval or recipe.data.test):
        raise RecipeError("the recipe has neither data.eval nor data.test: nothing to score")
    device = torch.device(recipe.device)
    make_repeatable(device)
    hand_back_freed_memory()
    objective = objective_for(recipe.objective.name)  # type: ignore[arg-type]
    results: dict[str, dict[str, float]] = {}
    with stop_on_signals() as stop, memory_explained(recipe), ExitStack() as stack:
        base, adapter = named(target, recipe.model)
        folder = local_safetensors(
            base.name, base.revision, trust_remote_code=base.trust_remote_code
        )
        tokenizer = load_tokenizer(folder, base)
        recipe, encoded = prepare(recipe, tokenizer, names=("eval", "test"), check=stop.check)
        examples = {name: found.examples for name, found in encoded.items()}
        view = _view(recipe, base, folder, adapter, examples, stack)
        for name, found in examples.items():
            require_fits(view.model, found, objective)
            result = score(
                view,
                objective,
                found,
                batch_size=recipe.eval.batch_size,
                masked=needs_mask(view, objective, found[: recipe.eval.batch_size], device),
                device=device,
                between=stop.check,
            )
            results[name] = {"loss": result.mean, "rows": len(found)}
            if result.accuracy is not None:
                results[name]["accuracy"] = result.accuracy
            print(f"{name}: {in_words(results[name])}", flush=True)
    print(f"peak memory {peak_memory_bytes(device) / 2**30:.2f} GiB")
    return results


def _view(
    recipe: Recipe,
    base: ModelSection,
    folder: Path,
    adapter: str | None,
    examples: Mapping[str, Sequence[Example]],
    stack: ExitStack,
) -> View:
    """The model in the recipe's compute type, wherever it has room; `stack` closes what it needs."""
    device, compute = torch.device(recipe.device), DTYPES[recipe.model.compute_dtype]
    # Stored as it was tuned, so that the score is the one that the run printed.
    full = adapter is None and recipe.tune.method == "full"
    stored = DTYPES[recipe.model.dtype] if full else compute
    place = _place(recipe, base, examples)
    loaded = load_model(
        folder,
        base,
        dtype=stored,
        device=device,
        streamed=None
        if place.residency == "device"
        else lambda block: block not in place.resident_blocks,
    )
    keep_freed_memory()
    model: PreTrainedModel | PeftModel = loaded.model
    if loaded.blocks:
        assert place.residency != "device"
        cache_folder().mkdir(parents=True, exist_ok=True)
        place_for_codes = stack.enter_context(TemporaryDirectory(dir=cache_folder()))
        streamer = stream(
            loaded.blocks, [], (), loaded.sources, residency=place.residency, device=device,
            slots=place.slots, working=Path(place_for_codes, "working-copy.bin"), say=print,
        )  # fmt: skip
        stack.callback(streamer.close)
    if adapter:
        model = load_adapter(loaded.model, adapter, DTYPES[recipe.model.dtype])
    require_causal(base.name, loaded.model)
    return View(model, {}, {}, compute, torch.tensor([[1, 2, 3, 4]], device=device))


def _place(recipe: Recipe, base: ModelSection, examples: Mapping[str, Sequence[Example]]) -> Choice:
    """Where the weights have room: nothing is tuned, so nothing is kept beside them."""
    optimizer = recipe.optimizer.model_copy(update={"moments": "scalar"})
    still = recipe.model_copy(update={"model": base, "optimizer": optimizer})
    longest = max(examples.values(), key=lambda found: max(map(length, found)))
    return choose(still, shape_of(still, {"train": longest, **examples}), *budgets(recipe))
