"""A row's columns by role, and what is said of a row that does not fit."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
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
        if isinstance(own, list):
            return [self.filled(option) for option in own]
        assert own is not None
        found = self.texts(own)
        if len(found) < 2:
            raise self.error(f"{own} must list two options or more")
        return found

    def label(self, options: Sequence[str]) -> int:
        """Which of `options` is right: by `data.labels`, else by its number or its text."""
        value, labels = self.column("label"), self.section.labels
        known = list(labels) or [str(i) for i in range(len(options))]
        if isinstance(value, float) and value.is_integer() and str(value) not in known:
            value = int(value)  # a Parquet column of integers with gaps is read as floats
        if isinstance(value, bool) and str(value) not in known:
            value = int(value)
        if not labels:
            texts = value if isinstance(value, list) else [value]
            if right := [text for text in texts if text in options]:
                return options.index(right[0])
        if str(value) not in known:
            named = f"data.labels ({', '.join(known)})" if labels else f"its {len(known)} options"
            raise self.error(f"label {brief(str(value))!r} is not in {named}")
        return known.index(str(value))

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
        found = ", ".join(key for key, value in self.row.items() if value is not None)
        return self.error(
            f"expected a column {name!r} ({self.section.format} reads {', '.join(self.needed)}; "
            f"data.columns renames), found {found or 'none'}"
        )


def shown(row: Row) -> str:
    """A row in at most 200 characters."""
    return brief(one_line(ValueError(row)))


def brief(text: str, most: int = 200) -> str:
    return text if len(text) <= most else text[: most - 3] + "..."
