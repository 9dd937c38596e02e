"""The forms in which chat templates read the same turns: text or parts, arguments as text or objects.

A template that does not know a form does not always fail: it may write Python's notation of a list,
quote arguments twice, or write nothing.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

from jinja2 import TemplateError

from zoft.data.files import Row

Turns = list[Row]

# What a template's own code may raise on turns that it does not expect.
FAILURES = (
    TemplateError, TypeError, ValueError, AttributeError, LookupError, ArithmeticError, RuntimeError,
)  # fmt: skip


def suited(turns: Turns, render: Callable[[Turns], str]) -> Turns:
    """The turns in the form that the template reads; as they are, if it reads them so."""
    for change, wrong in ((joined, is_listed), (parsed, is_quoted), (parted, is_missing)):
        changed = [change(turn) for turn in turns]
        if changed == turns:
            continue
        text = attempt(render, turns)
        if text is not None and not any(wrong(turn, text) for turn in turns):
            continue
        other = attempt(render, changed)
        if other is None or any(is_listed(turn, other) for turn in changed):
            continue
        if text is None or sum(wrong(x, other) for x in turns) < sum(wrong(x, text) for x in turns):
            turns = changed
    return turns


def attempt(render: Callable[[Turns], str], turns: Turns) -> str | None:
    try:
        return render(turns)
    except FAILURES:
        return None


def joined(turn: Row) -> Row:
    """Parts of text as one text."""
    parts = turn.get("content")
    if not isinstance(parts, list):
        return turn
    texts = [part if isinstance(part, str) else part.get("text") for part in parts]
    whole = all(isinstance(text, str) for text in texts)
    return {**turn, "content": "".join(map(str, texts))} if whole else turn


def is_listed(turn: Row, text: str) -> bool:
    parts = turn.get("content")
    return isinstance(parts, list) and (
        str(parts) in text or json.dumps(parts, ensure_ascii=False) in text
    )


def parted(turn: Row) -> Row:
    """A text as its only part."""
    content = turn.get("content")
    if not (isinstance(content, str) and content.strip()):
        return turn
    return {**turn, "content": [{"type": "text", "text": content}]}


def is_missing(turn: Row, text: str) -> bool:
    content = turn.get("content")
    return isinstance(content, str) and content.rpartition("</think>")[2].strip() not in text


def parsed(turn: Row) -> Row:
    """Arguments of calls that are JSON in a text, as OpenAI has them, as objects."""
    calls = turn.get("tool_calls")
    if not isinstance(calls, list):
        return turn
    return {**turn, "tool_calls": [_parsed(call) for call in calls]}


def is_quoted(turn: Row, text: str) -> bool:
    return any(
        json.dumps(given, ensure_ascii=False) in text
        for given in arguments(turn)
        if given.lstrip().startswith("{")
    )


def arguments(turn: Row) -> list[str]:
    """The arguments of a turn's calls that are text."""
    calls = turn.get("tool_calls")
    found = [_called(call).get("arguments") for call in calls] if isinstance(calls, list) else []
    return [given for given in found if isinstance(given, str)]


def _called(call: Any) -> Row:
    """A call's name and arguments: under `function`, or directly."""
    inner = call.get("function") if isinstance(call, dict) else None
    if isinstance(inner, dict):
        return inner
    return call if isinstance(call, dict) else {}


def _parsed(call: Any) -> Any:
    inner = _called(call)
    try:
        found = json.loads(inner.get("arguments", ""))
    except (TypeError, ValueError, RecursionError):
        return call
    if not isinstance(found, dict):
        return call
    changed = {**inner, "arguments": found}
    return changed if inner is call else {**call, "function": changed}
