"""Chats: the tokenizer's chat template spells them, the assistant's turns are learnt."""

from __future__ import annotations

from typing import Any

from jinja2 import TemplateError

from zoft.data.columns import Numbered, as_text, column, optional, shown
from zoft.data.examples import Example, TextExample
from zoft.data.files import Row, one_line
from zoft.data.tokens import Tokens, shared
from zoft.errors import DataError
from zoft.recipe.sections.data import DataSection

CHAT_ROLES = ("system", "developer", "user", "assistant", "tool", "function", "ipython")
SHAREGPT_ROLES = {
    "system": "system",
    "human": "user",
    "user": "user",
    "gpt": "assistant",
    "assistant": "assistant",
    "tool": "tool",
    "observation": "tool",
}


def messages(rows: Numbered, section: DataSection, tokens: Tokens) -> list[Example]:
    """A list of {"role": ..., "content": ...}. Each reply is learnt, with its end token."""
    require_template(section, tokens)
    return [conversation(turns_of(section, number, row), number, tokens) for number, row in rows]


def sharegpt(rows: Numbered, section: DataSection, tokens: Tokens) -> list[Example]:
    """A list of {"from": "human" or "gpt", "value": ...}, perhaps with a column `system`."""
    require_template(section, tokens)
    return [
        conversation(shared_turns(section, number, row), number, tokens) for number, row in rows
    ]


def require_template(section: DataSection, tokens: Tokens) -> None:
    if tokens.tokenizer.chat_template is None:
        raise DataError(
            f"data.format: {section.format} needs a chat template, which this tokenizer lacks; "
            "take an instruction-tuned model, or format prompt-completion or alpaca"
        )


def turns_of(section: DataSection, number: int, row: Row) -> list[Row]:
    """A conversation: objects with a role and what is said (or a call of tools)."""
    turns = listed_turns("messages", '{"role": ..., "content": ...}', section, number, row)
    for i, turn in enumerate(turns, 1):
        role, content = turn.get("role"), turn.get("content")
        if not isinstance(role, str):
            raise DataError(
                f'row {number}: expected a list of {{"role": ..., "content": ...}}, turn {i} has no '
                f"role; the row: {shown(row)}"
            )
        require_known(role, CHAT_ROLES, i, number, row)
        if isinstance(content, list) or (content is None and turn.get("tool_calls")):
            continue  # parts of a message: the template's business
        if content is None:
            raise DataError(f"row {number}: turn {i} has no content; the row: {shown(row)}")
        as_text(content, f"the content of turn {i}", number, row)
    return turns


def shared_turns(section: DataSection, number: int, row: Row) -> list[Row]:
    """ShareGPT's turns as the chat template knows them."""
    shape = '{"from": "human" or "gpt", "value": ...}'
    turns: list[Row] = []
    if system := optional("system", section, number, row):
        turns.append({"role": "system", "content": system})
    for i, turn in enumerate(listed_turns("conversations", shape, section, number, row), 1):
        role, content = turn.get("from"), turn.get("value")
        if not isinstance(role, str) or content is None:
            raise DataError(f"row {number}: expected a list of {shape}, turn {i} is {shown(turn)}")
        require_known(role, tuple(SHAREGPT_ROLES), i, number, row)
        content = as_text(content, f"the value of turn {i}", number, row)
        turns.append({"role": SHAREGPT_ROLES[role], "content": content})
    return turns


def listed_turns(
    role: str, shape: str, section: DataSection, number: int, row: Row
) -> list[dict[str, Any]]:
    turns = column(role, section, number, row)
    if not (isinstance(turns, list) and turns and all(isinstance(turn, dict) for turn in turns)):
        raise DataError(f"row {number}: expected a list of {shape}; the row: {shown(row)}")
    return turns


def require_known(role: str, known: tuple[str, ...], turn: int, number: int, row: Row) -> None:
    if role not in known:
        raise DataError(
            f"row {number}: turn {turn} has the role {role!r}; the roles are {', '.join(known)}; "
            f"the row: {shown(row)}"
        )


def conversation(turns: list[Row], number: int, tokens: Tokens) -> TextExample:
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
    return TextExample(
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
