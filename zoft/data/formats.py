"""The formats of a row, one function each: numbered rows in, examples of any length out.

All texts of a call are tokenized together. A continuation is never tokenized alone: what follows a
prompt is whatever the tokenizer makes of both, from where the two token sequences part.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from zoft.data.columns import (
    Numbered,
    label_of,
    optional,
    options_of,
    render,
    shown,
    text_of,
    texts_of,
)
from zoft.data.examples import Choice, Example, TextExample
from zoft.data.tokens import Ids, Tokens, shared
from zoft.errors import DataError
from zoft.recipe.sections.data import DataSection

# The prompt that Stanford's Alpaca was tuned with; its first paragraph is the system's.
ALPACA = (
    "Below is an instruction that describes a task. "
    "Write a response that appropriately completes the request."
)
ALPACA_WITH_INPUT = (
    "Below is an instruction that describes a task, paired with an input that provides further "
    "context. Write a response that appropriately completes the request."
)


def classification(
    rows: Numbered, templates: Sequence[str], section: DataSection, tokens: Tokens, *, choice: bool
) -> list[Example]:
    """The prompt of each row's template, continued by each of its options.

    With `choice` false only the right word follows, as a text to be learnt.
    """
    prompts = [
        render(template, section, number, row)
        for template, (number, row) in zip(templates, rows, strict=True)
    ]
    options = [options_of(section, number, row) for number, row in rows]
    labels = [
        label_of(section, words, number, row)
        for words, (number, row) in zip(options, rows, strict=True)
    ]
    behind = [
        [prompt + gap(template) + word for word in words]
        for prompt, template, words in zip(prompts, templates, options, strict=True)
    ]
    if not choice:
        texts = [words[label] for words, label in zip(behind, labels, strict=True)]
        answers = [words[label] for words, label in zip(options, labels, strict=True)]
        return [
            replace(example, answers=(answer,))
            for example, answer in zip(continuations(tokens, prompts, texts), answers, strict=True)
        ]

    alone = tokens.encode(prompts)
    continued = iter(tokens.encode([text for words in behind for text in words]))
    examples: list[Example] = []
    for prompt, words, label, (number, row) in zip(alone, options, labels, rows, strict=True):
        full = [next(continued) for _ in words]
        cut = min(shared(prompt, ids) for ids in full)  # a token may span prompt and word
        found = tuple(ids[cut:] for ids in full)
        where = "data.labels" if section.labels else f"row {number}"
        if not all(found):
            word = words[found.index(())]
            raise DataError(f"{where}: the tokenizer has no token for the word {word!r}")
        if section.labels and len(set(found)) < len(found):
            raise DataError(f"{where}: two words have the same tokens; the row: {shown(row)}")
        examples.append(Choice(prompt[:cut], found, label))
    return examples


def prompt_completion(
    rows: Numbered, templates: Sequence[str] | None, section: DataSection, tokens: Tokens
) -> list[Example]:
    """The completion and EOS are learnt. It stands directly behind the prompt, but a blank after
    that of a template. Of several answers the first is learnt."""
    answers = [texts_of("completion", section, number, row) for number, row in rows]
    if templates is None:
        prompts = [text_of("prompt", section, number, row) for number, row in rows]
        gaps = [""] * len(rows)
    else:
        prompts = [
            render(template, section, number, row)
            for template, (number, row) in zip(templates, rows, strict=True)
        ]
        gaps = [gap(template) for template in templates]
    return completed(tokens, prompts, gaps, answers)


def alpaca(rows: Numbered, section: DataSection, tokens: Tokens) -> list[Example]:
    """`output`, behind the Alpaca prompt of `instruction` and `input` (it may be empty), is learnt.

    A `system` text stands in place of the prompt's first paragraph.
    """
    prompts, answers = [], []
    for number, row in rows:
        instruction = text_of("instruction", section, number, row)
        given = optional("input", section, number, row)
        system = optional("system", section, number, row)
        parts = [
            system or (ALPACA_WITH_INPUT if given else ALPACA),
            f"### Instruction:\n{instruction}",
            *([f"### Input:\n{given}"] if given else []),
            "### Response:\n",
        ]
        prompts.append("\n\n".join(parts))
        answers.append([text_of("output", section, number, row)])
    return completed(tokens, prompts, [""] * len(rows), answers)


def text(rows: Numbered, section: DataSection, tokens: Tokens) -> list[Example]:
    """Every token is learnt, EOS included. An empty text teaches nothing."""
    encoded = tokens.encode([text_of("text", section, number, row) for number, row in rows])
    return [
        learnt_from(1, tokens.ended(ids)) if ids != tokens.start else TextExample(ids, ())
        for ids in encoded
    ]


def completed(
    tokens: Tokens, prompts: list[str], gaps: list[str], answers: list[list[str]]
) -> list[Example]:
    """Prompts with the first of their answers and EOS; one without an answer teaches nothing."""
    firsts = [next(iter(known), "") for known in answers]
    texts = [
        prompt + between + first if first else prompt
        for prompt, between, first in zip(prompts, gaps, firsts, strict=True)
    ]
    found = continuations(tokens, prompts, texts)
    return [
        replace(learnt_from(example.supervised[0], tokens.ended(example.ids)), answers=tuple(known))
        if example.supervised
        else example
        for example, known in zip(found, answers, strict=True)
    ]


def gap(template: str) -> str:
    """What stands between a template's prompt and the word behind it."""
    return "" if template[-1:].isspace() else " "


def continuations(tokens: Tokens, prompts: list[str], texts: list[str]) -> list[TextExample]:
    """Each text as tokens, supervised from where it parts from the tokens of its prompt."""
    pairs = zip(tokens.encode(prompts), tokens.encode(texts), strict=True)
    return [learnt_from(shared(prompt, ids), ids) for prompt, ids in pairs]


def learnt_from(first: int, ids: Ids) -> TextExample:
    """Supervise all positions from `first` on; position 0 has nothing to be predicted from."""
    return TextExample(ids, tuple(range(max(first, 1), len(ids))))
