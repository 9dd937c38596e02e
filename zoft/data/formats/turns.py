"""What a row says of a conversation: its turns, which of them are learnt, and its functions."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from zoft.data.columns import RowReader, brief
from zoft.data.files import Row, without_nulls
from zoft.data.formats.chat import RESERVED, Chat

FLAGS = ("weight", "train", "training", "loss")  # of a turn: whether its reply is learnt
MEDIA = ("image", "image_url", "video", "video_url", "audio", "input_audio")


def conversation(row: RowReader, turns: Sequence[Row]) -> Chat:
    """A chat of turns with `role` and `content`, after the text of a column `system`; and what the
    columns `tools`, `documents` and `chat_template_kwargs` give the template."""
    if system := row.optional("system"):
        if turns[0].get("role") == "system":
            raise row.error("a column system and turn 1 both are a system prompt; remove one")
        turns = [{"role": "system", "content": system}, *turns]
    learnt = tuple(is_learnt(turn, i, row) for i, turn in enumerate(turns, 1))
    said = [{key: value for key, value in turn.items() if key not in FLAGS} for turn in turns]
    # Arguments are the caller's own: an empty one may be meant.
    bare = without_nulls(said, keep="arguments")
    given = variables(row)
    if documents := objects("documents", "documents", row):
        given["documents"] = documents
    return Chat(bare, learnt, row.number, objects("tools", "functions", row), given)


def listed_turns(role: str, shape: str, row: RowReader) -> list[dict[str, Any]]:
    """The turns of a conversation: a list of objects, or that list as JSON text."""
    turns = row.column(role)
    if isinstance(turns, str) and turns.lstrip().startswith("["):  # as a CSV file has them
        turns = parsed(turns, role, row)
    if not (isinstance(turns, list) and turns and all(isinstance(turn, dict) for turn in turns)):
        raise row.error(f"expected a list of {shape}")
    return turns


def as_other(key: str, form: str, column: str) -> str:
    """How a recipe reads turns that are written as another format has them."""
    role = "messages" if form == "messages" else "conversations"
    return f"; turns with {key!r} are read by data.format={form} data.columns.{role}={column}"


def require_known(role: str, known: Sequence[str], turn: int, row: RowReader) -> None:
    if role not in known:
        raise row.error(f"turn {turn} has the role {role!r}; the roles are {', '.join(known)}")


def require_text(parts: Sequence[Any], turn: int, row: RowReader) -> None:
    """Refuse parts of a message that are no text: the model would not see them."""
    for part in parts:
        kind = part.get("type") if isinstance(part, dict) else None
        if not isinstance(part, dict | str) or kind in MEDIA:
            raise row.error(
                f"turn {turn} holds {kind or brief(repr(part), 20)}; only text is learnt"
            )
        if isinstance(part, dict) and kind == "text":
            row.as_text(part.get("text"), f"a part of turn {turn}")


def is_learnt(turn: Row, number: int, row: RowReader) -> bool:
    """Whether a turn is learnt: the assistant's are, unless a flag says no (weight: 0, train: false)."""
    assistant = turn.get("role") == "assistant"
    for name in FLAGS:
        value = turn.get(name)
        if value is None:
            continue
        if value not in (0, 1):
            raise row.error(f"turn {number}: {name} is {value!r}; a turn is learnt (1) or not (0)")
        if value and not assistant:
            raise row.error(f"turn {number}: {name} is {value!r}; only the assistant's are learnt")
        assistant = assistant and bool(value)
    return assistant


def objects(role: str, what: str, row: RowReader) -> list[Row] | None:
    """The functions or documents of a column: a list of objects, or its JSON; None if there are none."""
    found = beside(role, row)
    if not found:
        return None
    if not (isinstance(found, list) and all(isinstance(one, dict) for one in found)):
        raise row.error(f"expected {role} to list {what}, each an object")
    return found


def variables(row: RowReader) -> Row:
    """The variables of the template that the column `chat_template_kwargs` sets by name."""
    found = beside("chat_template_kwargs", row)
    if not found:
        return {}
    if not isinstance(found, dict):
        raise row.error("expected chat_template_kwargs to be an object, names and values")
    if taken := [name for name in found if name in RESERVED]:
        raise row.error(f"chat_template_kwargs cannot set {taken[0]}")
    return found


def beside(role: str, row: RowReader) -> Any:
    """What a column holds that a conversation need not have; JSON in a text is parsed."""
    name = row.section.columns.get(role, role)
    found = row.row.get(name)
    return parsed(found, name, row) if isinstance(found, str) and found.strip() else found


def parsed(text: str, name: str, row: RowReader) -> Any:
    """What the JSON in a column says."""
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        python = "; it is Python's notation, write it with json.dumps" if "{'" in text else ""
        raise row.error(f"{name} is text that is not JSON ({error}){python}") from error
