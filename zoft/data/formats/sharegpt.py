"""sharegpt: a list of {"from": "human" or "gpt", "value": ...}, perhaps with a column `system`."""

from __future__ import annotations

from zoft.data.columns import RowReader, shown
from zoft.data.files import Row
from zoft.data.formats.chat import Chat
from zoft.data.formats.format import Format
from zoft.data.formats.turns import conversation, listed_turns, require_known
from zoft.errors import DataError

ROLES = {  # in ShareGPT -> in a chat template
    "system": "system",
    "human": "user",
    "user": "user",
    "gpt": "assistant",
    "assistant": "assistant",
    "tool": "tool",
    "observation": "tool",
}


def parse(row: RowReader) -> Chat:
    """The turns as the chat template knows them."""
    shape = '{"from": "human" or "gpt", "value": ...}'
    turns: list[Row] = []
    if system := row.optional("system"):
        turns.append({"role": "system", "content": system})
    for i, turn in enumerate(listed_turns("conversations", shape, row), 1):
        role, content = turn.get("from"), turn.get("value")
        if not isinstance(role, str) or content is None:
            raise DataError(
                f"row {row.number}: expected a list of {shape}, turn {i} is {shown(turn)}"
            )
        require_known(role, tuple(ROLES), i, row)
        content = row.as_text(content, f"the value of turn {i}")
        beside = {key: value for key, value in turn.items() if key not in ("from", "value")}
        turns.append({**beside, "role": ROLES[role], "content": content})
    return conversation(row, turns)


SHAREGPT = Format(name="sharegpt", reads=("conversations",), parse=parse, chat=True)
