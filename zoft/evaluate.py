"""`zoft eval`: the recipe's eval and test sets on a run, a checkpoint, an adapter or a model."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from peft import PeftModel
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from zoft import checkpoint
from zoft.data.encoding import encode
from zoft.data.sources import load_rows
from zoft.errors import EnvironmentProblem, RecipeError
from zoft.interrupts import stop_on_signals
from zoft.machine import DTYPES, make_repeatable, resolve
from zoft.memory import keep_freed_memory, memory_explained, peak_memory_bytes
from zoft.models.adapters import base_of, is_adapter, load_adapter
from zoft.models.convert import local_safetensors
from zoft.models.load import load_model, load_tokenizer, require_causal
from zoft.objectives.objective import objective_for
from zoft.recipe.defaults import with_defaults
from zoft.recipe.load import load_recipe
from zoft.recipe.schema import Recipe
from zoft.run_folder import RunFolder
from zoft.scoring import needs_mask, require_fits, score
from zoft.tracking import in_words
from zoft.zo.probe import View


def evaluate(
    target: str, source: str, overrides: Sequence[str] = ()
) -> dict[str, dict[str, float]]:
    """Print, and return by set, what `target` scores on the recipe's eval and test sets.

    Raises ZoftError.
    """
    recipe = resolve(with_defaults(load_recipe(source, overrides)))
    sets = {"eval": recipe.data.eval, "test": recipe.data.test}
    if not any(sets.values()):
        raise RecipeError("the recipe has neither data.eval nor data.test: nothing to score")
    device = torch.device(recipe.device)
    make_repeatable(device)
    keep_freed_memory()
    view, tokenizer = _load(target, recipe, device)
    objective = objective_for(recipe.objective.name)  # type: ignore[arg-type]
    results: dict[str, dict[str, float]] = {}
    with stop_on_signals() as stop, memory_explained(recipe):
        for name, rows in sets.items():
            if rows is None:
                continue
            examples = encode(
                load_rows(rows), recipe.data, tokenizer, choice=recipe.objective.name == "choice"
            ).examples
            require_fits(view.model, examples, objective)
            found = score(
                view,
                objective,
                examples,
                batch_size=recipe.eval.batch_size,
                masked=needs_mask(view, objective, examples[: recipe.eval.batch_size], device),
                device=device,
                between=stop.check,
            )
            results[name] = {"loss": found.mean, "rows": len(examples)}
            if found.accuracy is not None:
                results[name]["accuracy"] = found.accuracy
            print(f"{name}: {in_words(results[name])}", flush=True)
    print(f"peak memory {peak_memory_bytes(device) / 2**30:.2f} GiB")
    return results


def _load(
    target: str, recipe: Recipe, device: torch.device
) -> tuple[View, PreTrainedTokenizerBase]:
    """The model that `target` names, seen in the recipe's compute type."""
    where = _weights(target)
    compute = DTYPES[recipe.model.compute_dtype]
    named = target == recipe.model.name  # the recipe's own base, at the recipe's revision
    revision = recipe.model.revision if named else None
    base, adapter = recipe.model.model_copy(update={"name": where, "revision": revision}), None
    if is_adapter(where):
        name, revision = base_of(where)
        base, adapter = base.model_copy(update={"name": name, "revision": revision}), where
    folder = local_safetensors(base.name, base.revision, trust_remote_code=base.trust_remote_code)
    tokenizer = load_tokenizer(folder, base)
    # Stored as it was tuned, so that the score is the one that the run printed.
    full = adapter is None and recipe.tune.method == "full"
    stored = DTYPES[recipe.model.dtype] if full else compute
    model: PreTrainedModel | PeftModel
    model = load_model(folder, base, dtype=stored, device=device).model
    require_causal(base.name, model)
    if adapter:
        model = load_adapter(model, adapter, DTYPES[recipe.model.dtype])
    example = torch.tensor([[1, 2, 3, 4]], device=device)
    return View(model, {}, {}, compute, example), tokenizer


def _weights(target: str) -> str:
    """The folder with a run's newest weights; anything else is a model's or an adapter's name."""
    run = RunFolder(Path(target))
    if not run.exists:
        return target
    if run.final.is_dir():
        return str(run.final)
    found = checkpoint.find(run.path)
    if not found:
        raise EnvironmentProblem(
            f"{run.path} has neither final/ nor a checkpoint yet: zoft train … --resume auto"
        )
    return str(found[-1])
