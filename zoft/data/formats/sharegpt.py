"""sharegpt: a list of {"from": "human" or "gpt", "value": ...}, perhaps with a column `system`."""

from __future__ import annotations

from zoft.data.columns import RowReader, shown
from zoft.data.files import Row
from zoft.data.formats.chat import Chat
from zoft.data.formats.format import Format
from zoft.data.formats.turns import (
    as_other,
    conversation,
    listed_turns,
    parsed,
    require_known,
)
from zoft.errors import DataError

CALL = "function_call"
ROLES = {  # in ShareGPT -> in a chat template
    "system": "system",
    "human": "user",
    "user": "user",
    "gpt": "assistant",
    "assistant": "assistant",
    CALL: "assistant",
    "tool": "tool",
    "observation": "tool",
}
SHAPE = '{"from": "human" or "gpt", "value": ...}'


def parse(row: RowReader) -> Chat:
    """The turns as the chat template knows them."""
    turns = listed_turns("conversations", SHAPE, row)
    return conversation(row, [_turn(turn, i, row) for i, turn in enumerate(turns, 1)])


def _turn(turn: Row, i: int, row: RowReader) -> Row:
    role, content = turn.get("from"), turn.get("value")
    if not isinstance(role, str) or content is None:
        other = as_other("role", "messages", "conversations") if "role" in turn else ""
        raise DataError(
            f"row {row.number}: expected a list of {SHAPE}, turn {i} is {shown(turn)}{other}"
        )
    require_known(role, tuple(ROLES), i, row)
    content = row.as_text(content, f"the value of turn {i}")
    said: Row = {"role": ROLES[role], "content": content}
    if role == CALL:
        said = {"role": ROLES[role], "content": "", "tool_calls": _calls(content, i, row)}
    return {**{key: value for key, value in turn.items() if key not in ("from", "value")}, **said}


def _calls(text: str, i: int, row: RowReader) -> list[Row]:
    """The calls of a turn: an object of name and arguments as JSON, or a list of those."""
    found = parsed(text, f"the value of turn {i}", row)
    calls = found if isinstance(found, list) else [found]
    if not all(isinstance(call, dict) and {"name", "arguments"} <= call.keys() for call in calls):
        raise row.error(f"turn {i}: expected a call, an object of name and arguments")
    return [{"type": "function", "function": call} for call in calls]


SHAREGPT = Format(name="sharegpt", reads=("conversations",), parse=parse, chat=True)
