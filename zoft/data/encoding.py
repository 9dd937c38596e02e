"""Rows to examples: the recipe's format, its limit of length, and an account of every row."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from transformers import PreTrainedTokenizerBase

from zoft.data.columns import RowReader
from zoft.data.examples import Choice, Example, TextExample, length
from zoft.data.files import EVERY, Check, Row, never
from zoft.data.formats.chat import require_template
from zoft.data.formats.format import Untokenized
from zoft.data.formats.prompted import Options
from zoft.data.formats.table import format_of
from zoft.data.sources import Rows
from zoft.data.tokens import Tokens
from zoft.errors import DataError
from zoft.recipe.sections.data import DataSection
from zoft.system.philox import PURPOSE_TEMPLATE, draw64

# Tokenized at once: enough to be fast, little enough to stop within a second.
CHUNK = EVERY  # rows
CHARACTERS = 200_000


@dataclass(frozen=True)
class Counts:
    """What became of the rows: read = kept + too_long + untrained; truncated are among the kept."""

    read: int
    kept: int
    truncated: int
    too_long: int
    untrained: int


@dataclass(frozen=True)
class Encoded:
    """The examples of one data set, in the order of its rows."""

    examples: tuple[Example, ...]
    counts: Counts


@dataclass(frozen=True)
class TemplateSeed:
    """Which of several templates a row takes: a function of the seed, the source and the row."""

    seed: int
    source: int = 0


def encode(
    rows: Rows,
    section: DataSection,
    tokenizer: PreTrainedTokenizerBase,
    *,
    choice: bool,
    seed: TemplateSeed | None = None,
    check: Check = never,
) -> Encoded:
    """Turn rows into examples of at most `data.max_length` tokens.

    `choice` says whether classification scores every label word (Choice) or learns the right one
    (TextExample). Without a `seed` all rows take the first template. `check` is called every few
    hundred rows, and may raise. Rows without a token to learn are dropped and counted. Raises
    DataError for a row that does not fit the format, for a long one under `on_overflow: error`, and
    if none is left.
    """
    examples: list[Example] = []
    truncated = too_long = untrained = 0
    tokens = Tokens.of(tokenizer)
    for number, example in formatted(rows, section, tokens, choice, seed, check):
        if not has_target(example):
            untrained += 1
        elif length(example) <= section.max_length:
            examples.append(example)
        elif section.on_overflow == "error":
            raise DataError(
                f"row {number}: {length(example)} tokens, data.max_length is {section.max_length}; "
                "raise it, or set data.on_overflow to drop or truncate"
            )
        elif section.on_overflow == "truncate" and (
            short := shortened(example, section.max_length, len(tokens.start))
        ):
            examples.append(short)
            truncated += 1
        else:
            too_long += 1
    counts = Counts(len(rows), len(examples), truncated, too_long, untrained)
    if not examples:
        raise DataError(
            f"none of {counts.read} rows can be used: {too_long} longer than data.max_length "
            f"({section.max_length}), {untrained} without a token to learn"
        )
    return Encoded(tuple(examples), counts)


def formatted(
    rows: Rows,
    section: DataSection,
    tokens: Tokens,
    choice: bool,
    seed: TemplateSeed | None,
    check: Check,
) -> Iterator[tuple[int, Example]]:
    """Row numbers, from 1, and the examples they become, whatever their length."""
    form = format_of(section)
    if form.chat:
        require_template(form.name, tokens.tokenizer)
    needed = form.columns(section)
    templates = templates_of(section, len(rows), seed)
    for chunk in chunks(rows):
        parsed = [
            form.parse(RowReader(section, number, row, needed, templates[number - 1]))
            for number, row in chunk
        ]
        if not choice:
            parsed = [row.gold() if isinstance(row, Options) else row for row in parsed]
        for (number, _), example in zip(chunk, tokenized(parsed, tokens), strict=True):
            yield number, example
        check()


def tokenized(rows: list[Untokenized], tokens: Tokens) -> list[Example]:
    """The examples of rows; all their texts are tokenized together, which is much faster."""
    ids = iter(tokens.encode([text for row in rows for text in row.texts]))
    return [row.example([next(ids) for _ in row.texts], tokens) for row in rows]


def chunks(rows: Rows) -> Iterator[list[tuple[int, Row]]]:
    """Numbered rows, some at a time: CHUNK of them, or fewer long ones."""
    chunk: list[tuple[int, Row]] = []
    characters = 0
    for number, row in enumerate(rows, 1):
        chunk.append((number, row))
        characters += sum(len(str(value)) for value in row.values())
        if len(chunk) == CHUNK or characters > CHARACTERS:
            yield chunk
            chunk, characters = [], 0
    if chunk:
        yield chunk


def templates_of(
    section: DataSection, rows: int, seed: TemplateSeed | None
) -> Sequence[str | None]:
    """The template of each row; None where the format has none, or the recipe gives none."""
    match section.template:
        case None | str():
            return [section.template] * rows
        case templates if seed is None:
            return templates[:1] * rows
        case templates:
            draws = draw64(seed.seed, seed.source, PURPOSE_TEMPLATE, rows)
            return [templates[int(i) % len(templates)] for i in draws]


def has_target(example: Example) -> bool:
    """Whether the example has a token to learn, and something to predict it from."""
    match example:
        case TextExample(supervised=supervised):
            return bool(supervised)
        case Choice(prompt=prompt):
            return bool(prompt)


def endings(examples: Sequence[Example], tokenizer: PreTrainedTokenizerBase) -> Counter[str]:
    """The special tokens (EOS, the end of a turn) that are learnt last in a row, and in how many."""
    special = {*tokenizer.added_tokens_decoder, tokenizer.eos_token_id}
    last = (x.ids[x.supervised[-1]] for x in examples if isinstance(x, TextExample))
    return Counter(str(tokenizer.convert_ids_to_tokens(i)) for i in last if i in special)


def shortened(example: Example, limit: int, start: int) -> Example | None:
    """Cut an example down to `limit` tokens, or None if nothing to learn would remain.

    What is learnt follows a prompt: that loses tokens from its left, but keeps the `start` tokens (BOS)
    that the tokenizer put there, or else its last one. Of a chat the last reply is kept whole; one that
    loses its beginning is not learnt. A text that is learnt from its start loses its end; options are
    compared as wholes and never cut.
    """
    front = max(start, 1)
    match example:
        case TextExample(ids=ids, supervised=supervised):
            runs = _runs(supervised)
            if supervised[0] <= front and len(runs) == 1:
                return replace(
                    example, ids=ids[:limit], supervised=tuple(p for p in supervised if p < limit)
                )
            end = supervised[-1] + 1  # what follows the last reply teaches nothing
            cut = max(end - limit, 0)
            if runs[-1][0] - cut < front:
                return None
            kept = ids[:start] + ids[start + cut : end]
            moved = tuple(p - cut for run in runs if run[0] - cut >= front for p in run)
            return replace(example, ids=kept, supervised=moved)
        case Choice(prompt=prompt, options=options, label=label):
            excess = length(example) - limit
            if len(prompt) - excess < front:
                return None
            return Choice(prompt[:start] + prompt[start + excess :], options, label)


def _runs(positions: Sequence[int]) -> list[list[int]]:
    """Positions in stretches without a gap."""
    found: list[list[int]] = []
    for p in positions:
        if found and p == found[-1][-1] + 1:
            found[-1].append(p)
        else:
            found.append([p])
    return found
