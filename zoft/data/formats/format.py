"""Format: the columns that a data format reads, how it is detected, and its parse function."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from string import Formatter
from typing import Protocol

from zoft.data.columns import RowReader
from zoft.data.examples import Example
from zoft.data.tokens import Ids, Tokens
from zoft.recipe.sections.data import DataSection, FormatName


class Untokenized(Protocol):
    """A row's example before its texts are token ids: those of many rows are tokenized together."""

    @property
    def texts(self) -> Sequence[str]:
        """The texts to tokenize."""

    def example(self, ids: Sequence[Ids], tokens: Tokens, /) -> Example:
        """The example, from the token ids of `texts`, each with BOS. Raises DataError."""


@dataclass(frozen=True)
class Format:
    """A data format: the columns that it reads and is known by, and how it reads a row.

    `reads` are the roles that a row must have. A template stands in place of the role
    `template_replaces`; None: the format has no template. A `chat` needs the tokenizer's template.
    `needs` is what the recipe must hold besides, where the columns alone do not make the format.
    """

    name: FormatName
    reads: tuple[str, ...]
    parse: Callable[[RowReader], Untokenized]
    template_replaces: str | None = None
    chat: bool = False
    needs: str | None = None

    def columns(self, section: DataSection) -> list[str]:
        """The columns that a row must have: those of templates, then of the other roles."""
        options = section.options
        texts = [section.template] if isinstance(section.template, str) else section.template or []
        roles = [role for role in self.reads if not (texts and role == self.template_replaces)]
        fields = [
            re.split(r"[.\[]", field)[0]
            for text in [*texts, *(options if isinstance(options, list) else [])]
            for _, field, _, _ in Formatter().parse(text)
            if field
        ]
        roles = [*fields, *([options] if isinstance(options, str) else []), *roles]
        return list(dict.fromkeys(section.columns.get(role, role) for role in roles))
