"""text: every token is learnt, EOS included."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from zoft.data.columns import RowReader
from zoft.data.examples import TextExample
from zoft.data.formats.format import Format
from zoft.data.formats.prompted import learnt_from
from zoft.data.tokens import Ids, Tokens


@dataclass(frozen=True)
class Plain:
    """A text without a prompt. An empty one teaches nothing."""

    text: str

    @property
    def texts(self) -> Sequence[str]:
        return (self.text,)

    def example(self, ids: Sequence[Ids], tokens: Tokens) -> TextExample:
        if ids[0] == tokens.start:
            return TextExample(ids[0], ())
        return learnt_from(1, tokens.ended(ids[0]))


def parse(row: RowReader) -> Plain:
    return Plain(row.text("text"))


TEXT = Format(name="text", reads=("text",), parse=parse)
