"""What a row holds, by role: texts, labels, options; and what is said of a row that does not fit."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from itertools import islice
from string import Formatter
from typing import Any

from zoft.data.files import Row, one_line
from zoft.errors import DataError, RecipeError
from zoft.recipe.sections import template as templates
from zoft.recipe.sections.data import DataSection, Format

Numbered = list[tuple[int, Row]]  # rows with their number in the source, from 1

# The roles that a format reads, and those that it can do without.
ROLES_OF = {
    "classification": ("label",),
    "prompt-completion": ("prompt", "completion"),
    "alpaca": ("instruction", "output"),
    "sharegpt": ("conversations",),
    "messages": ("messages",),
    "text": ("text",),
}

LOOKED_AT = 100  # rows, to tell the format
# The first whose roles are all there. An alpaca row may have a `text` as well, a chat anything.
KNOWN: tuple[tuple[Format, tuple[str, ...]], ...] = (
    ("messages", ("messages",)),
    ("sharegpt", ("conversations",)),
    ("prompt-completion", ("prompt", "completion")),
    ("alpaca", ("instruction", "output")),
    ("classification", ("text", "label")),
    ("text", ("text",)),
)


def detect(rows: Iterable[Row], section: DataSection) -> Format:
    """The format of rows. Raises DataError if none fits, RecipeError if it lacks its template."""
    first = list(islice(rows, LOOKED_AT))
    found = list(dict.fromkeys(k for row in first for k, value in row.items() if value is not None))
    for form, roles in KNOWN:
        columns = [section.columns.get(role, role) for role in roles]
        if not all(name in found for name in columns):
            continue
        if form == "classification":
            raise RecipeError(
                f"data.format: the columns {' and '.join(columns)} look like classification, which "
                'needs data.template, e.g. "{text} It was", and data.labels, e.g. '
                "{0: terrible, 1: great}; or name data.format text"
            )
        return form
    choices = "; ".join(f"{form}: {', '.join(roles)}" for form, roles in KNOWN)
    raise DataError(
        f"no data.format fits the columns found: {', '.join(found) or 'none'}; expected are those of "
        f"one format ({choices}); data.columns renames; row 1: {shown(first[0])}"
    )


def render(template: str, section: DataSection, number: int, row: Row) -> str:
    """The template filled in from the row's columns, which roles may rename."""
    roles = {role: row[name] for role, name in section.columns.items() if name in row}
    try:
        return templates.render(template, {**row, **roles})
    except KeyError as error:
        name = section.columns.get(error.args[0], error.args[0])
        raise no_column(name, section, number, row) from error
    except (ValueError, IndexError, AttributeError, TypeError) as error:
        problem = f"row {number}: data.template {template!r}: {one_line(error)}"
        raise DataError(f"{problem}; the row: {shown(row)}") from error


def text_of(role: str, section: DataSection, number: int, row: Row) -> str:
    """A column that holds text (a number is taken as written)."""
    return as_text(column(role, section, number, row), role, number, row)


def texts_of(role: str, section: DataSection, number: int, row: Row) -> list[str]:
    """A column that holds a text or several, as a list or under `text` (SQuAD) or `spans` (DROP)."""
    value = column(role, section, number, row)
    if isinstance(value, dict):
        value = next((value[key] for key in ("text", "spans") if key in value), value)
    values = value if isinstance(value, list) else [value]
    return [as_text(one, role, number, row) for one in values]


def as_text(value: Any, role: str, number: int, row: Row) -> str:
    try:
        return templates.as_text(value)
    except ValueError as error:
        raise DataError(
            f"row {number}: {role} is no text ({error}); the row: {shown(row)}"
        ) from error


def options_of(section: DataSection, number: int, row: Row) -> list[str]:
    """The words that compete in this row: those of `data.labels`, or its own."""
    if section.labels:
        return list(section.labels.values())
    if isinstance(section.options, list):
        return [render(option, section, number, row) for option in section.options]
    assert section.options is not None
    found = texts_of(section.options, section, number, row)
    if len(found) < 2:
        raise DataError(
            f"row {number}: {section.options} must list two options or more; the row: {shown(row)}"
        )
    return found


def label_of(section: DataSection, options: Sequence[str], number: int, row: Row) -> int:
    """Which of `options` is right: by `data.labels`, else by its number or its text."""
    value = column("label", section, number, row)
    known = list(section.labels) or [str(i) for i in range(len(options))]
    if isinstance(value, float) and value.is_integer() and str(value) not in known:
        value = int(value)  # a Parquet column of integers with gaps is read as floats
    if isinstance(value, bool) and str(value) not in known:
        value = int(value)
    if not section.labels:
        texts = value if isinstance(value, list) else [value]
        if right := [text for text in texts if text in options]:
            return options.index(right[0])
    if str(value) not in known:
        named = (
            f"data.labels ({', '.join(known)})" if section.labels else f"its {len(known)} options"
        )
        raise DataError(
            f"row {number}: label {brief(str(value))!r} is not in {named}; the row: {shown(row)}"
        )
    return known.index(str(value))


def column(role: str, section: DataSection, number: int, row: Row) -> Any:
    """The row's value for a role."""
    name = section.columns.get(role, role)
    if row.get(name) is None:
        raise no_column(name, section, number, row)
    return row[name]


def optional(role: str, section: DataSection, number: int, row: Row) -> str:
    """The row's text for a role that it need not have."""
    name = section.columns.get(role, role)
    return "" if row.get(name) is None else text_of(role, section, number, row)


def no_column(name: str, section: DataSection, number: int, row: Row) -> DataError:
    found = ", ".join(key for key, value in row.items() if value is not None)
    return DataError(
        f"row {number}: expected a column {name!r} ({section.format} reads "
        f"{', '.join(expected(section))}; data.columns renames), found {found or 'none'}; "
        f"the row: {shown(row)}"
    )


def expected(section: DataSection) -> list[str]:
    """The columns that a row must have."""
    roles = list(ROLES_OF[section.format])
    texts = [section.template] if isinstance(section.template, str) else section.template or []
    if texts and "prompt" in roles:
        roles.remove("prompt")
    options = section.options
    texts = [*texts, *(options if isinstance(options, list) else [])]
    fields = [
        re.split(r"[.\[]", field)[0]
        for text in texts
        for _, field, _, _ in Formatter().parse(text)
        if field
    ]
    roles = [*fields, *([options] if isinstance(options, str) else []), *roles]
    return list(dict.fromkeys(section.columns.get(role, role) for role in roles))


def shown(row: Row) -> str:
    """A row in at most 200 characters."""
    return brief(one_line(ValueError(row)))


def brief(text: str, most: int = 200) -> str:
    return text if len(text) <= most else text[: most - 3] + "..."
