"""The keys a recipe may have, read off the schema."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache
from typing import Any, get_args, get_origin

from pydantic.fields import FieldInfo

from zoft.recipe.schema import Recipe
from zoft.recipe.sections.base import Section

Key = tuple[str, ...]  # ("data", "train", "path") is data.train.path


@cache
def fields() -> dict[Key, FieldInfo]:
    """Every key, sections included, in the schema's order."""
    return dict(_walk(Recipe, ()))


def siblings(section: Key) -> list[str]:
    """The keys directly under `section`; `()` is the top."""
    section = unnumbered(section)
    return [key[-1] for key in fields() if key[:-1] == section]


def unnumbered(key: Key) -> Key:
    """The key without numbers of sections in a list: data.train.0.path is data.train.path."""
    kept: Key = ()
    for part in key:
        field = fields().get(kept)
        if not (part.isdecimal() and field and _many(field.annotation)):
            kept = (*kept, part)
    return kept


def field_of(key: Key) -> FieldInfo | None:
    """The field of a key."""
    return fields().get(unnumbered(key))


def holds_text(key: Key) -> bool:
    """Whether the key's value is free text, or the key is one of a mapping or list of free texts."""
    if field := field_of(key):
        return field.annotation in (str, str | None) or holds_texts(key)
    parent = field_of(key[:-1])
    options = (parent.annotation, *get_args(parent.annotation)) if parent else ()
    mapping = any(get_origin(option) is dict for option in options)  # all are of texts
    return mapping or list[str] in options


def holds_texts(key: Key) -> bool:
    """Whether the key's value is free text or a list of such."""
    field = field_of(key)
    return field is not None and field.annotation == str | list[str] | None


def _walk(section: type[Section], prefix: Key) -> Iterator[tuple[Key, FieldInfo]]:
    """A key that several sections of a union have comes once, from the first."""
    for name, field in section.model_fields.items():
        yield (*prefix, name), field
        below: dict[Key, FieldInfo] = {}
        for nested in _nested(field.annotation):
            for key, found in _walk(nested, (*prefix, name)):
                below.setdefault(key, found)
        yield from below.items()


def _nested(annotation: Any) -> list[type[Section]]:
    """The sections that a field may hold: of `X`, `X | None`, `X | list[X]` and `X | Y`."""
    if isinstance(annotation, type) and issubclass(annotation, Section):
        return [annotation]
    return [section for part in get_args(annotation) for section in _nested(part)]


def _many(annotation: Any) -> bool:
    """Whether a field may hold a list of sections."""
    if get_origin(annotation) is list:
        return bool(_nested(annotation))
    return any(map(_many, get_args(annotation)))
