"""`data.format: auto`: what the columns of the first rows say."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import islice

from zoft.data.columns import shown
from zoft.data.files import Row
from zoft.errors import DataError, RecipeError
from zoft.recipe.data_section import DataSection, Format

LOOKED_AT = 100  # rows
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
