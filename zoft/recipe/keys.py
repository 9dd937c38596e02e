"""The keys a recipe may have, read off the schema."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache
from typing import Any, get_args

from pydantic.fields import FieldInfo

from zoft.recipe.schema import Recipe
from zoft.recipe.section import Section

Key = tuple[str, ...]  # ("data", "train", "path") is data.train.path


@cache
def fields() -> dict[Key, FieldInfo]:
    """Every key, sections included, in the schema's order."""
    return dict(_walk(Recipe, ()))


def siblings(section: Key) -> list[str]:
    """The keys directly under `section`; `()` is the top."""
    return [key[-1] for key in fields() if key[:-1] == section]


def holds_text(key: Key) -> bool:
    """Whether the key's value is free text, or the key is one of a mapping or list of free texts."""
    if field := fields().get(key):
        return field.annotation in (str, str | None)
    parent = fields().get(key[:-1])
    options = (parent.annotation, *get_args(parent.annotation)) if parent else ()
    return dict[str, str] in options or list[str] in options


def _walk(section: type[Section], prefix: Key) -> Iterator[tuple[Key, FieldInfo]]:
    for name, field in section.model_fields.items():
        yield (*prefix, name), field
        if nested := _nested(field.annotation):
            yield from _walk(nested, (*prefix, name))


def _nested(annotation: Any) -> type[Section] | None:
    """The section that a field holds: `X` and `X | None` alike."""
    options = (annotation, *get_args(annotation))
    return next((o for o in options if isinstance(o, type) and issubclass(o, Section)), None)
