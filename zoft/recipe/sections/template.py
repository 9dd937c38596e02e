"""Templates: text with {column} for a column of the row, and the few changes a column may undergo.

{text}                              as it stands
{premise:no-period}                 without blanks around it and a period at its end
{choice1:uncapital}                 its first letter small, but for the word "I"
{question:effect=so,cause=because}  one word for each value of the column
{answers[text][0]}                  an entry of an object or a list
"""

from __future__ import annotations

import difflib
import math
import re
from collections.abc import Mapping
from decimal import Decimal
from string import Formatter
from typing import Any

from zoft.recipe.sections.base import unwritable
from zoft.recipe.sections.tasks import TASKS

SPECS = ("no-period", "uncapital")


def problem_of(template: str) -> str | None:
    """What is wrong with a template, or None."""
    if problem := unwritable(template):
        return problem
    try:
        fields = [
            (field, spec) for _, field, spec, _ in Formatter().parse(template) if field is not None
        ]
    except ValueError as error:
        return f"{error}; a literal brace is written twice"
    if not fields or any(not field or field.isdigit() for field, _ in fields):
        near = difflib.get_close_matches(template, TASKS, n=1)
        hint = f"; did you mean the task {near[0]}?" if near else ""
        return f"{template!r} must name a column in braces, e.g. {{text}}{hint}"
    for field, spec in fields:
        if spec and spec not in SPECS and not re.fullmatch(r"[^=,]+=[^=,]*(,[^=,]+=[^=,]*)+", spec):
            return (
                f"{{{field}:{spec}}}: after the colon stands no-period, uncapital or a word for each "
                "value such as effect=so,cause=because"
            )
    return None


def render(template: str, row: Mapping[str, Any]) -> str:
    """The template filled in. Raises KeyError(column) for one that the row lacks, else ValueError."""
    return FILL.vformat(template, (), row)


class _Fill(Formatter):
    def get_value(self, key: int | str, _args: Any, kwargs: Mapping[str, Any]) -> Any:
        value = kwargs[str(key)]
        if value is None:
            raise KeyError(key)
        return value

    def format_field(self, value: Any, spec: str) -> str:
        text = as_text(value)
        if spec == "no-period":
            return text.strip().removesuffix(".")
        if spec == "uncapital":
            return text if re.match(r"I\b", text) else text[:1].lower() + text[1:]
        if spec:
            words = dict(pair.split("=", 1) for pair in spec.split(","))
            if text not in words:
                raise ValueError(f"{text!r} is none of {', '.join(words)}")
            return words[text]
        return text


FILL = _Fill()


def as_text(value: Any) -> str:
    """A text, or a number as written. Raises ValueError for what a tokenizer cannot read."""
    if isinstance(value, bool):  # True in Python, true in JSON, TRUE in a spreadsheet
        raise ValueError(f"{str(value).lower()} is no text; write it in quotes")
    if isinstance(value, float) and not math.isfinite(value):
        raise ValueError(f"{value} is no text")
    if not isinstance(value, str | int | float | Decimal):
        raise ValueError(f"{type(value).__name__} is no text")
    text = str(value)
    if problem := unwritable(text):
        raise ValueError(problem)
    return text
