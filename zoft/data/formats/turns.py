"""What a row says of a conversation: its turns, which of them are learnt, and its functions."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from zoft.data.columns import RowReader, brief
from zoft.data.files import Row, without_nulls
from zoft.data.formats.chat import Chat

FLAGS = ("weight", "train", "training", "loss")  # of a turn: whether its reply is learnt
MEDIA = ("image", "image_url", "video", "video_url", "audio", "input_audio")


def conversation(row: RowReader, turns: Sequence[Row]) -> Chat:
    """A chat of turns with `role` and `content`, and the functions of the column `tools`."""
    learnt = tuple(is_learnt(turn, i, row) for i, turn in enumerate(turns, 1))
    said = [{key: value for key, value in turn.items() if key not in FLAGS} for turn in turns]
    # Arguments are the caller's own: an empty one may be meant.
    bare = without_nulls(said, keep="arguments")
    return Chat(bare, learnt, row.number, functions(row))


def listed_turns(role: str, shape: str, row: RowReader) -> list[dict[str, Any]]:
    turns = row.column(role)
    if not (isinstance(turns, list) and turns and all(isinstance(turn, dict) for turn in turns)):
        raise row.error(f"expected a list of {shape}")
    return turns


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


def functions(row: RowReader) -> list[Row] | None:
    """The functions that may be called, of the column `tools`: a list of objects, or its JSON."""
    name = row.section.columns.get("tools", "tools")
    found = row.row.get(name)
    if isinstance(found, str) and found.strip():
        try:
            found = json.loads(found)
        except (ValueError, RecursionError) as error:
            raise row.error(f"{name} is text that is not JSON ({error})") from error
    if not found:
        return None
    if not (isinstance(found, list) and all(isinstance(one, dict) for one in found)):
        raise row.error(f"expected {name} to list functions, each an object")
    return found
