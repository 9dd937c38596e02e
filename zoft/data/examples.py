"""What a row becomes: token ids, and which of them are predicted."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class TextExample:
    """One text. Each supervised position p >= 1 is the target of what stands before it.

    `ids[: supervised[0]]` is the prompt, where there is one. `answers` are the texts that a generated
    reply is compared with; the first of them is learnt. None: the supervised text is the answer.
    """

    ids: tuple[int, ...]
    supervised: tuple[int, ...]  # ascending positions into ids
    answers: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Choice:
    """One prompt and its possible continuations, of which `options[label]` is right."""

    prompt: tuple[int, ...]
    options: tuple[tuple[int, ...], ...]
    label: int


Example = TextExample | Choice


def length(example: Example) -> int:
    """Tokens of the longest sequence that the example puts through the model."""
    match example:
        case TextExample(ids=ids):
            return len(ids)
        case Choice(prompt=prompt, options=options):
            return len(prompt) + max(map(len, options))


def gold(example: Example) -> TextExample:
    """The example as one text to be learnt: of a choice, its prompt and the right option."""
    match example:
        case TextExample():
            return example
        case Choice(prompt=prompt, options=options, label=label):
            ids = prompt + options[label]
            return TextExample(ids, tuple(range(len(prompt), len(ids))))
