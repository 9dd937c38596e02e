"""`zoft eval`: the recipe's eval and test sets on a run, a checkpoint, an adapter or a model."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from rich.console import Console

from zoft.data.sets import load_data
from zoft.engine.objectives.objective import objective_for
from zoft.errors import Diverged, RecipeError
from zoft.inference.scoring import evaluate_set, needs_mask, require_fits
from zoft.inference.session import Found, find, opened
from zoft.planning.out_of_memory import memory_explained
from zoft.planning.resolve import resolve
from zoft.recipe.load import load_recipe
from zoft.recipe.resolved import Resolved
from zoft.recipe.schema import Recipe
from zoft.runs.metrics import in_words
from zoft.system.device import make_repeatable, peak_memory_bytes
from zoft.system.host_memory import gib, hand_back_freed_memory
from zoft.system.signals import Stop, stop_on_signals


def evaluate(
    target: str, source: str, overrides: Sequence[str] = (), *, recipe: Recipe | None = None
) -> dict[str, dict[str, Any]]:
    """Print, and return by set, what `target` scores on the recipe's eval and test sets.

    `recipe` is what was read from `source`, if it was read already. Raises ZoftError.
    """
    written = recipe or load_recipe(source, overrides)
    if not (written.data.eval or written.data.test):
        raise RecipeError("the recipe has neither data.eval nor data.test: nothing to score")
    with stop_on_signals() as stop:
        found = find(target, written.model)
        resolved = resolve(written.model_copy(update={"model": found.base}))
        with memory_explained(resolved):
            results = _score(resolved, found, stop)
    if lost := [name for name, found in results.items() if not math.isfinite(found["loss"])]:
        raise Diverged(
            f"the loss of {' and '.join(lost)} is not finite: weights of {target} are not, or numbers "
            f"leave the range of {resolved.model.compute_dtype}: try model.compute_dtype=float32"
        )
    print(f"peak memory {gib(peak_memory_bytes(torch.device(resolved.device)))}")
    return results


def _score(recipe: Resolved, found: Found, stop: Stop) -> dict[str, dict[str, Any]]:
    """Score and print one set after the other."""
    device = torch.device(recipe.device)
    make_repeatable(device)
    hand_back_freed_memory()
    objective = objective_for(recipe.objective.name)
    data = load_data(recipe, found.tokenizer, names=("eval", "test"), check=stop.check)
    results = {}
    with opened(recipe, found, data.examples) as view, Console().status("") as status:

        def told(what: str, done: int, rows: int) -> None:
            status.update(f"{what} {done:,}/{rows:,} rows")

        for name, examples in data.examples.items():
            require_fits(view.model, examples, objective, found.tokenizer)
            view.masked = needs_mask(view, objective, examples[: recipe.eval.batch_size], device)
            results[name] = evaluate_set(
                view,
                objective,
                examples,
                found.tokenizer,
                recipe.eval,
                device=device,
                between=stop.check,
                told=told,
            )
            print(f"{name}: {in_words(results[name])}", flush=True)
    return results
