"""A prompt with what follows it: one completion, or options that compete.

A continuation is never tokenized alone: what follows a prompt is whatever the tokenizer makes of both,
from where the two token sequences part.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from zoft.data.columns import RowReader, shown
from zoft.data.examples import Choice, TextExample
from zoft.data.tokens import Ids, Tokens, shared
from zoft.errors import DataError


@dataclass(frozen=True)
class Completion:
    """A prompt and its `continuation`, which is learnt, with EOS if it `ends` the text.

    `answers` are those that a generated reply is compared with.
    """

    prompt: str
    continuation: str
    answers: tuple[str, ...]
    ends: bool = True

    @classmethod
    def of(cls, prompt: str, answers: Sequence[str], *, templated: bool = False) -> Completion:
        """The first of the answers is learnt, after a template as `following` has it. Without one,
        or if it is empty, nothing is."""
        first = next(iter(answers), "")
        return cls(
            prompt, following(prompt, first) if templated and first else first, tuple(answers)
        )

    @property
    def texts(self) -> Sequence[str]:
        return self.prompt, self.prompt + self.continuation

    def example(self, ids: Sequence[Ids], tokens: Tokens) -> TextExample:
        prompt, text = ids
        found = learnt_from(shared(prompt, text), text)
        if found.supervised and self.ends:
            found = learnt_from(found.supervised[0], tokens.ended(text))
        return replace(found, answers=self.answers)


@dataclass(frozen=True)
class Options:
    """A prompt and the `words` that compete to follow it, of which `words[label]` is right."""

    row: RowReader
    prompt: str
    words: Sequence[str]
    label: int

    def gold(self) -> Completion:
        """The prompt with the right word only, as a text to be learnt."""
        word = self.words[self.label]
        return Completion(self.prompt, following(self.prompt, word), (word,), ends=False)

    @property
    def texts(self) -> Sequence[str]:
        return self.prompt, *(self.prompt + following(self.prompt, word) for word in self.words)

    def example(self, ids: Sequence[Ids], _tokens: Tokens) -> Choice:
        prompt, *continued = ids
        cut = min(shared(prompt, text) for text in continued)  # a token may span prompt and word
        options = tuple(text[cut:] for text in continued)
        labels = self.row.section.labels
        where = "data.labels" if labels else f"row {self.row.number}"
        if not all(options):
            word = self.words[options.index(())]
            raise DataError(f"{where}: the tokenizer has no token for the word {word!r}")
        if labels and len(set(options)) < len(options):
            raise DataError(
                f"{where}: two words have the same tokens; the row: {shown(self.row.row)}"
            )
        return Choice(prompt[:cut], options, self.label)


def following(prompt: str, text: str) -> str:
    """A text as it follows a template's prompt: after one blank, which either may bring along."""
    if prompt.endswith(" "):
        return text.removeprefix(" ")
    return text if prompt[-1:].isspace() or text[:1].isspace() else f" {text}"


def learnt_from(first: int, ids: Ids) -> TextExample:
    """Supervise all positions from `first` on; position 0 has nothing to be predicted from."""
    return TextExample(ids, tuple(range(max(first, 1), len(ids))))
