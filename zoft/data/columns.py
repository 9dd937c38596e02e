"""A row's columns by role, and what is said of a row that does not fit."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from decimal import Decimal
from typing import Any

from zoft.data.files import Row, one_line
from zoft.errors import DataError
from zoft.recipe.sections import template as templates
from zoft.recipe.sections.data import DataSection


@dataclass(frozen=True)
class RowReader:
    """Reads one row by role, which `data.columns` may rename.

    Whatever does not fit raises a DataError that names the row, shows it, and says what was expected.
    `number` counts the rows of the source from 1. `needed` are the columns that the format reads,
    `template` is the one that this row takes, if any.
    """

    section: DataSection
    number: int
    row: Row
    needed: Sequence[str]
    template: str | None = None

    def column(self, role: str) -> Any:
        """The row's value for a role."""
        name = self.section.columns.get(role, role)
        if self.row.get(name) is None:
            raise self._lacks(name)
        return self.row[name]

    def text(self, role: str) -> str:
        """A column that holds text (a number is taken as written)."""
        return self.as_text(self.column(role), role)

    def texts(self, role: str) -> list[str]:
        """A column that holds a text or several: a list, or under `text` (SQuAD) or `spans` (DROP)."""
        value = self.column(role)
        if isinstance(value, dict):
            value = next((value[key] for key in ("text", "spans") if key in value), value)
        return [self.as_text(one, role) for one in (value if isinstance(value, list) else [value])]

    def optional(self, role: str) -> str:
        """The text of a column that the row need not have; without it, nothing."""
        name = self.section.columns.get(role, role)
        return "" if self.row.get(name) is None else self.text(role)

    def options(self) -> list[str]:
        """The words that compete in this row: those of `data.labels`, or its own."""
        own = self.section.options
        if self.section.labels:
            return list(self.section.labels.values())
        assert own is not None
        found = [self.filled(one) for one in own] if isinstance(own, list) else self.texts(own)
        if len(found) < 2:
            raise self.error(f"{own} must list two options or more")
        if empty := [number for number, word in enumerate(found) if not word.strip()]:
            raise self.error(f"option {empty[0]} is empty")
        return found

    def label(self, options: Sequence[str]) -> int:
        """Which of `options` is right: by `data.labels`, else by its number or its text."""
        value, labels = self.column("label"), self.section.labels
        known = list(labels) or [str(i) for i in range(len(options))]
        if not labels:
            texts = value if isinstance(value, list) else [value]
            if right := [text for text in texts if text in options]:
                return options.index(right[0])
        found = place_of(value, known)
        if found is None:
            named = f"data.labels ({', '.join(known)})" if labels else f"its {len(known)} options"
            raise self.error(f"label {brief(str(value))!r} is not in {named}")
        return found

    def filled(self, template: str) -> str:
        """The template filled in from the row's columns."""
        columns = self.section.columns
        roles = {role: self.row[name] for role, name in columns.items() if name in self.row}
        try:
            return templates.render(template, {**self.row, **roles})
        except KeyError as error:
            raise self._lacks(columns.get(error.args[0], error.args[0])) from error
        except (ValueError, IndexError, AttributeError, TypeError) as error:
            raise self.error(f"data.template {template!r}: {one_line(error)}") from error

    def as_text(self, value: Any, what: str) -> str:
        """A value of the row as text; `what` names it where it is none."""
        try:
            return templates.as_text(value)
        except ValueError as error:
            raise self.error(f"{what} is no text ({error})") from error

    def error(self, problem: str) -> DataError:
        return DataError(f"row {self.number}: {problem}; the row: {shown(self.row)}")

    def _lacks(self, name: str) -> DataError:
        if elsewhere := beneath(self.row, lambda one: name in one):
            return DataError(elsewhere)
        named = [key for key, value in self.row.items() if value is not None]
        # A blank in a header is seen only in quotes.
        found = ", ".join(key if key == key.strip() else repr(key) for key in named)
        return self.error(
            f"expected a column {name!r} ({self.section.format} reads {', '.join(self.needed)}; "
            f"data.columns renames), found {found or 'none'}"
        )


def place_of(value: Any, known: Sequence[str]) -> int | None:
    """The place of a label: as it is written, else the only one of the same number or truth.

    A Parquet column of integers with gaps is read as floats; truth is `true`, `True` or `1`.
    """
    if str(value) in known:
        return known.index(str(value))
    alike = [i for i, written in enumerate(known) if is_alike(value, written)]
    return alike[0] if len(alike) == 1 else None


def is_alike(value: Any, written: str) -> bool:
    if str(value).lower() in ("true", "false") and written.lower() == str(value).lower():
        return True
    if not isinstance(value, int | float | Decimal):
        return False
    try:
        return float(written) == value
    except ValueError:
        return False


def beneath(row: Row, fits: Callable[[Row], bool]) -> str | None:
    """What is said of a whole file that was read as one row: the key under which its rows stand."""
    for key, value in row.items():
        if isinstance(value, list) and value and isinstance(value[0], dict) and fits(value[0]):
            names = ", ".join(row)
            return f"one object with {names}; rows stand under {key}, write them as a list"
    return None


def shown(row: Row) -> str:
    """A row in at most 200 characters."""
    return brief(one_line(ValueError(row)))


def brief(text: str, most: int = 200) -> str:
    return text if len(text) <= most else text[: most - 3] + "..."
