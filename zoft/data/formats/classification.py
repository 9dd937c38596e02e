"""classification: a template's prompt, and the words that compete to follow it."""

from __future__ import annotations

from zoft.data.columns import RowReader
from zoft.data.formats.format import Format
from zoft.data.formats.prompted import Options


def parse(row: RowReader) -> Options:
    """The words are `data.labels`, or the row's own options."""
    assert row.template is not None  # the recipe's schema asks for one
    prompt, words = row.filled(row.template), row.options()
    return Options(row, prompt, words, row.label(words))


CLASSIFICATION = Format(
    name="classification",
    reads=("text", "label"),
    parse=parse,
    template_replaces="text",
    needs='data.template, e.g. "{text} It was", and data.labels, e.g. {0: terrible, 1: great}; or '
    "name data.format text",
)
