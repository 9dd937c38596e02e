"""One key or one section of a recipe, explained in a few lines."""

from __future__ import annotations

from textwrap import fill

from zoft.errors import RecipeError
from zoft.recipe.docs.reference import Entry, entries
from zoft.recipe.messages import unknown

WIDTH = 80


def explain_field(key: str) -> str:
    """The key's type, default and meaning; a section's keys as well. Raises RecipeError."""
    found = {entry.key: entry for entry in entries()}
    entry = found.get(key.strip("."))
    if entry is None:
        raise RecipeError(f"{key}: {unknown(tuple(key.split('.')))}")
    lines = [
        entry.key,
        _row("type", entry.type),
        _row(
            "default", "none, the recipe must give it" if entry.default is None else entry.default
        ),
        fill(entry.description, WIDTH, initial_indent="  ", subsequent_indent="  "),
    ]
    below = [other for other in found.values() if other.section == entry.key]
    if below:
        width = max(len(other.key) for other in below)
        lines += ["", *(f"  {other.key:{width}}  {_value(other)}" for other in below)]
    return "\n".join(lines)


def _row(name: str, text: str) -> str:
    return fill(text, WIDTH, initial_indent=f"  {name:9}", subsequent_indent=" " * 11)


def _value(entry: Entry) -> str:
    return f"{entry.type} (required)" if entry.default is None else f"default {entry.default}"
