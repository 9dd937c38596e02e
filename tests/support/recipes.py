"""Recipes for tests: minimal, as a run resolved it, and of a tiny model on disk."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from support import tiny
from zoft.planning.resolve import resolve
from zoft.recipe.resolved import Resolved
from zoft.recipe.schema import Recipe

MINIMAL: dict[str, Any] = {
    "model": {"name": "m"},
    "data": {"train": {"path": "t.jsonl"}, "format": "text"},
    "output_dir": "runs/a",
}


def recipe(**sections: Any) -> Recipe:
    """A recipe; keys of a section are merged into the minimal ones."""
    merged = dict(MINIMAL)
    for name, value in sections.items():
        both = isinstance(value, dict) and name in MINIMAL
        merged[name] = {**MINIMAL[name], **value} if both else value
    return Recipe.model_validate(merged)


def chosen(**sections: Any) -> Resolved:
    """As `resolved.yaml` holds it: every `auto` decided."""
    model = {"compute_dtype": "bfloat16", "residency": "device", **sections.pop("model", {})}
    optimizer = {"perturbation": 3e-3, "paired": True, **sections.pop("optimizer", {})}
    return resolve(recipe(device="cpu", model=model, optimizer=optimizer, **sections), absent=True)


def of_tiny_llama(folder: Path, blocks: int = 2, **sections: Any) -> Resolved:
    tiny.llama(num_hidden_layers=blocks).config.save_pretrained(folder)
    model = {"name": str(folder), "compute_dtype": "float32", **sections.pop("model", {})}
    data = {"train": {"path": "none.jsonl"}, "format": "text", "max_length": 24}
    values = {"device": "cpu", "model": model, "data": data, **sections}
    return resolve(Recipe.model_validate(values))
