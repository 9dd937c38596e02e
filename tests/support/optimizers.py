"""Optimizers made from recipe keys."""

from __future__ import annotations

from typing import Any

from pydantic import TypeAdapter

from zoft.engine.optimizers.optimizer import Optimizer, optimizer_for
from zoft.engine.optimizers.update import Weights
from zoft.recipe.sections.optimizer import AnyOptimizer

SECTION: TypeAdapter[AnyOptimizer] = TypeAdapter(AnyOptimizer)


def optimizer(
    weights: Weights,
    name: str,
    *,
    seed: int,
    gaussian: bool = False,
    rank1: bool = False,
    **keys: Any,
) -> Optimizer:
    """An optimizer of the rule `name`, with one direction for the whole batch."""
    values = {
        "name": name,
        "structure": "rank1" if rank1 else "dense",
        "scope": "batch",
        "distribution": "gaussian" if gaussian else "rademacher",
        **keys,
    }
    return optimizer_for(SECTION.validate_python(values), seed, weights)
