"""messages: a list of {"role": ..., "content": ...}. Each reply is learnt, with its end token."""

from __future__ import annotations

from zoft.data.columns import RowReader
from zoft.data.formats.chat import Chat
from zoft.data.formats.format import Format
from zoft.data.formats.turns import (
    as_other,
    conversation,
    listed_turns,
    require_known,
    require_text,
)

ROLES = ("system", "developer", "user", "assistant", "tool", "function", "ipython")


def parse(row: RowReader) -> Chat:
    """A conversation: objects with a role and what is said (or a call of tools)."""
    shape = '{"role": ..., "content": ...}'
    turns = listed_turns("messages", shape, row)
    for i, turn in enumerate(turns, 1):
        role, content = turn.get("role"), turn.get("content")
        if not isinstance(role, str):
            other = as_other("from", "sharegpt", "messages") if "from" in turn else ""
            raise row.error(f"expected a list of {shape}, turn {i} has no role{other}")
        require_known(role, ROLES, i, row)
        if isinstance(content, list):
            require_text(content, i, row)
        elif content is not None:
            row.as_text(content, f"the content of turn {i}")
        elif not turn.get("tool_calls"):
            raise row.error(f"turn {i} has no content")
    return conversation(row, turns)


MESSAGES = Format(name="messages", reads=("messages",), parse=parse, chat=True)
