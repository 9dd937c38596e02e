"""The formats there are, in the order in which columns are compared with them."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import islice

from zoft.data.columns import beneath, shown
from zoft.data.files import Row
from zoft.data.formats.alpaca import ALPACA
from zoft.data.formats.classification import CLASSIFICATION
from zoft.data.formats.format import Format
from zoft.data.formats.messages import MESSAGES
from zoft.data.formats.prompt_completion import PROMPT_COMPLETION
from zoft.data.formats.sharegpt import SHAREGPT
from zoft.data.formats.text import TEXT
from zoft.errors import DataError, RecipeError
from zoft.recipe.sections.data import DataSection, FormatName

LOOKED_AT = 100  # rows, to tell the format

# The first whose columns are all there. An alpaca row may have a `text` as well, a chat anything.
FORMATS: tuple[Format, ...] = (
    MESSAGES,
    SHAREGPT,
    PROMPT_COMPLETION,
    ALPACA,
    CLASSIFICATION,
    TEXT,
)


def format_of(section: DataSection) -> Format:
    """The format that the recipe names. `auto` must have been detected before."""
    return next(form for form in FORMATS if form.name == section.format)


def detect(rows: Iterable[Row], section: DataSection) -> FormatName:
    """The format of rows. Raises DataError if none fits, RecipeError if the recipe lacks its needs."""
    first = list(islice(rows, LOOKED_AT))
    found = list(dict.fromkeys(k for row in first for k, value in row.items() if value is not None))
    columns_of = {
        form.name: [section.columns.get(role, role) for role in form.reads] for form in FORMATS
    }
    for form in FORMATS:
        columns = columns_of[form.name]
        if not all(name in found for name in columns):
            continue
        if form.needs:
            raise RecipeError(
                f"data.format: the columns {' and '.join(columns)} look like {form.name}, which "
                f"needs {form.needs}"
            )
        return form.name
    known = columns_of.values()
    if elsewhere := beneath(first[0], lambda row: any(set(names) <= set(row) for names in known)):
        raise DataError(elsewhere)
    choices = "; ".join(f"{form.name}: {', '.join(form.reads)}" for form in FORMATS)
    raise DataError(
        f"no data.format fits the columns found: {', '.join(found) or 'none'}; expected are those of "
        f"one format ({choices}); data.columns renames; row 1: {shown(first[0])}"
    )
