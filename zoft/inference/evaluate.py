"""`zoft eval`: the recipe's eval and test sets on a run, a checkpoint, an adapter or a model."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from zoft.data.sets import prepare
from zoft.engine.objectives.objective import objective_for
from zoft.errors import RecipeError
from zoft.inference.scoring import evaluate_set, needs_mask, require_fits
from zoft.inference.session import find, opened
from zoft.planning.out_of_memory import memory_explained
from zoft.planning.resolve import resolve
from zoft.recipe.defaults import with_defaults
from zoft.recipe.load import load_recipe
from zoft.runs.metrics import in_words
from zoft.system.device import make_repeatable, peak_memory_bytes
from zoft.system.host_memory import gib, hand_back_freed_memory
from zoft.system.signals import stop_on_signals


def evaluate(target: str, source: str, overrides: Sequence[str] = ()) -> dict[str, dict[str, Any]]:
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
    results: dict[str, dict[str, Any]] = {}
    with stop_on_signals() as stop, memory_explained(recipe):
        found = find(target, recipe.model)
        recipe, sets = prepare(recipe, found.tokenizer, names=("eval", "test"), check=stop.check)
        examples = {name: encoded.examples for name, encoded in sets.items()}
        with opened(recipe, found, examples) as view:
            for name, those in examples.items():
                require_fits(view.model, those, objective)
                view.masked = needs_mask(view, objective, those[: recipe.eval.batch_size], device)
                results[name] = evaluate_set(
                    view,
                    objective,
                    those,
                    found.tokenizer,
                    recipe.eval,
                    device=device,
                    between=stop.check,
                )
                print(f"{name}: {in_words(results[name])}", flush=True)
    print(f"peak memory {gib(peak_memory_bytes(device))}")
    return results
