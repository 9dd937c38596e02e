"""The formats of a row, one function each: numbered rows in, examples of any length out.

All texts of a call are tokenized together. A continuation is never tokenized alone: what follows a
prompt is whatever the tokenizer makes of both, from where the two token sequences part.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from jinja2 import TemplateError

from zoft.data.examples import Choice, Example, Sequence
from zoft.data.files import Row, one_line
from zoft.data.tokens import Ids, Tokens, shared
from zoft.errors import DataError
from zoft.recipe.data_section import DataSection

Numbered = list[tuple[int, Row]]  # rows with their number in the source, from 1


def classification(
    rows: Numbered, section: DataSection, tokens: Tokens, *, choice: bool
) -> list[Example]:
    """A prompt from `data.template`, continued by each of the label words.

    With `choice` false only the right word follows, as a text to be learnt.
    """
    template = section.template or ""
    gap = "" if template[-1:].isspace() else " "
    words = [gap + word for word in section.labels.values()]
    prompts = [render(template, section, number, row) for number, row in rows]
    labels = [label_of(section, number, row) for number, row in rows]
    if not choice:
        texts = [prompt + words[label] for prompt, label in zip(prompts, labels, strict=True)]
        return [
            replace(example, answers=(words[label].strip(),))
            for example, label in zip(continuations(tokens, prompts, texts), labels, strict=True)
        ]

    alone = tokens.encode(prompts)
    continued = [tokens.encode([prompt + word for prompt in prompts]) for word in words]
    examples: list[Example] = []
    for prompt, label, *full in zip(alone, labels, *continued, strict=True):
        cut = min(shared(prompt, ids) for ids in full)  # a token may span prompt and word
        options = tuple(ids[cut:] for ids in full)
        for word, option in zip(words, options, strict=True):
            if not option:
                raise DataError(f"data.labels: the tokenizer has no token for the word {word!r}")
        examples.append(Choice(prompt[:cut], options, label))
    return examples


def prompt_completion(rows: Numbered, section: DataSection, tokens: Tokens) -> list[Example]:
    """The completion, directly behind the prompt, and EOS are learnt."""
    prompts = [text_of("prompt", section, number, row) for number, row in rows]
    completions = [text_of("completion", section, number, row) for number, row in rows]
    texts = [prompt + text for prompt, text in zip(prompts, completions, strict=True)]
    return [
        replace(
            learnt_from(example.supervised[0], tokens.ended(example.ids)), answers=(completion,)
        )
        if example.supervised
        else example
        for example, completion in zip(
            continuations(tokens, prompts, texts), completions, strict=True
        )
    ]


def text(rows: Numbered, section: DataSection, tokens: Tokens) -> list[Example]:
    """Every token is learnt, EOS included. An empty text teaches nothing."""
    encoded = tokens.encode([text_of("text", section, number, row) for number, row in rows])
    return [
        learnt_from(1, tokens.ended(ids)) if ids != tokens.start else Sequence(ids, ())
        for ids in encoded
    ]


def messages(rows: Numbered, section: DataSection, tokens: Tokens) -> list[Example]:
    """The assistant's turns, each with its end token, are learnt; the chat template spells them."""
    if tokens.tokenizer.chat_template is None:
        raise DataError(
            "data.format: messages needs a chat template, which this tokenizer lacks; "
            "take an instruction-tuned model, or format prompt-completion"
        )
    return [conversation(turns_of(section, number, row), number, tokens) for number, row in rows]


def conversation(turns: list[Row], number: int, tokens: Tokens) -> Sequence:
    """One chat. A token is supervised if its first character lies in an assistant's turn."""

    def spell(count: int, prompted: bool = False) -> str:
        if count == 0:
            return ""
        return str(
            tokens.tokenizer.apply_chat_template(
                turns[:count], tokenize=False, add_generation_prompt=prompted
            )
        )

    try:
        whole = spell(len(turns))
        spans = []
        for i, turn in enumerate(turns):
            if turn["role"] == "assistant":
                span = span_of(turn, whole, spell(i), spell(i, prompted=True), spell(i + 1))
                if span is None:
                    raise DataError(
                        f"row {number}: the chat template rewrites turn {i + 1} when others "
                        "follow; end the conversation there, or use format prompt-completion"
                    )
                spans.append(range(*span))
    except (TemplateError, TypeError, KeyError) as error:
        raise DataError(f"row {number}: the chat template fails ({one_line(error)})") from error

    ids, begins = tokens.encode_with_offsets(whole)
    return Sequence(
        ids, tuple(p for p, at in enumerate(begins) if p and any(at in span for span in spans))
    )


def span_of(
    turn: Row, whole: str, before: str, prompted: str, after: str
) -> tuple[int, int] | None:
    """Where in the whole chat a turn's reply stands, from its first character past its end token.

    `before` and `after` are the chat up to and with the turn, `prompted` is `before` with the
    header that asks for the reply. Templates of reasoning models spell a turn differently once
    others follow (they drop its thoughts); its content is searched then. None: not found.
    """
    content = str(turn.get("content") or "").strip()
    begin = shared(whole, prompted)
    if not prompted:  # the chat opens with the assistant: no template can ask for that
        begin = whole.find(content) if content else len(after)
    if begin < 0 or not whole.startswith(before):
        return None
    if whole.startswith(after):
        return begin, len(after.rstrip())
    at, tail = whole.find(content, begin), after.rstrip().rpartition(content)[2]
    if not content or at < 0 or not whole.startswith(tail, at + len(content)):
        return None
    return begin, at + len(content) + len(tail)


def continuations(tokens: Tokens, prompts: list[str], texts: list[str]) -> list[Sequence]:
    """Each text as tokens, supervised from where it parts from the tokens of its prompt."""
    pairs = zip(tokens.encode(prompts), tokens.encode(texts), strict=True)
    return [learnt_from(shared(prompt, ids), ids) for prompt, ids in pairs]


def learnt_from(first: int, ids: Ids) -> Sequence:
    """Supervise all positions from `first` on; position 0 has nothing to be predicted from."""
    return Sequence(ids, tuple(range(max(first, 1), len(ids))))


def render(template: str, section: DataSection, number: int, row: Row) -> str:
    """The template filled in from the row's columns, which roles may rename."""
    roles = {role: row[name] for role, name in section.columns.items() if name in row}
    try:
        return template.format_map({**row, **roles})
    except KeyError as error:
        name = section.columns.get(error.args[0], error.args[0])
        raise no_column(name, number, row) from error
    except (ValueError, IndexError, AttributeError, TypeError) as error:
        raise DataError(f"row {number}: data.template {template!r}: {one_line(error)}") from error


def label_of(section: DataSection, number: int, row: Row) -> int:
    """Which of `data.labels` the row has."""
    value, known = column("label", section, number, row), list(section.labels)
    if isinstance(value, float) and value.is_integer() and str(value) not in known:
        value = int(value)  # a Parquet column of integers with gaps is read as floats
    if str(value) not in known:
        raise DataError(
            f"row {number}: label {str(value)!r} is not in data.labels ({', '.join(known)}); "
            f"the row: {shown(row)}"
        )
    return known.index(str(value))


def turns_of(section: DataSection, number: int, row: Row) -> list[Row]:
    """A conversation: a list of objects with a role."""
    turns = column("messages", section, number, row)
    if not (isinstance(turns, list) and turns and all(has_role(turn) for turn in turns)):
        raise DataError(
            f'row {number}: expected a list of {{"role": ..., "content": ...}}; '
            f"the row: {shown(row)}"
        )
    return turns


def has_role(turn: Any) -> bool:
    return isinstance(turn, dict) and isinstance(turn.get("role"), str)


def text_of(role: str, section: DataSection, number: int, row: Row) -> str:
    """A column that holds text (a number is taken as written)."""
    value = column(role, section, number, row)
    if not isinstance(value, str | int | float):
        raise DataError(f"row {number}: {role} is no text; the row: {shown(row)}")
    return str(value)


def column(role: str, section: DataSection, number: int, row: Row) -> Any:
    """The row's value for a role."""
    name = section.columns.get(role, role)
    if row.get(name) is None:
        raise no_column(name, number, row)
    return row[name]


def no_column(name: str, number: int, row: Row) -> DataError:
    found = ", ".join(key for key, value in row.items() if value is not None)
    return DataError(
        f"row {number}: expected a column {name!r} (data.columns renames), found {found}; "
        f"the row: {shown(row)}"
    )


def shown(row: Row) -> str:
    """A row in at most 200 characters."""
    line = one_line(ValueError(row))
    return line if len(line) <= 200 else line[:197] + "..."
