"""`section.key=value` and `~section.key` from the command line, laid over the recipe's values."""

from __future__ import annotations

from typing import Any

from zoft.recipe.fields import Key, holds_text, holds_texts
from zoft.recipe.yaml import Misquoted, NotYaml, read, repeated

Values = dict[Any, Any]


def apply(values: Values, override: str) -> tuple[Values, Key]:
    """Return the new values and the topmost key that the override made or changed.

    Nothing is changed in place: a YAML anchor may stand behind two sections. Raises ValueError
    with what is wrong.
    """
    name, given, text = override.partition("=")
    delete = name.startswith("~")
    key = tuple(name.removeprefix("~").split("."))
    if not all(key) or delete == bool(given):
        raise ValueError("expected section.key=value, or ~section.key to delete")
    changed = _delete(values, key, ()) if delete else _set(values, key, parse(text, key), ())
    return changed, _topmost(values, key)


def parse(text: str, key: Key) -> Any:
    """Read a value as YAML, but leave it as it stands where the key holds text.

    A template may start with a brace and a commit may look like a number; quotes still work. Raises
    ValueError for a key that is written twice.
    """
    try:
        root, value = read(text)
    except Misquoted:
        raise
    except NotYaml:
        return text
    texts = isinstance(value, list) and all(isinstance(one, str) for one in value)
    if value is None or isinstance(value, str) or (texts and holds_texts(key)):
        return value
    if holds_text(key):
        return text
    for _, below, _ in repeated(root):
        raise ValueError(f"{'.'.join((*key, *below))}: written twice")
    return value


def _set(node: Any, key: Key, value: Any, seen: Key) -> Any:
    if not key:
        return value
    seen = (*seen, key[0])
    if isinstance(node, list):
        i = _index(node, seen, add=True)
        return [
            *node[:i],
            _set(node[i] if i < len(node) else None, key[1:], value, seen),
            *node[i + 1 :],
        ]
    mapping = _mapping(node, seen[:-1])
    name = _spelling(mapping, key[0])
    return {**mapping, name: _set(mapping.get(name), key[1:], value, seen)}


def _delete(node: Any, key: Key, seen: Key) -> Any:
    if isinstance(node, list):
        i = _index(node, (*seen, key[0]), add=False)
        below = [_delete(node[i], key[1:], (*seen, key[0]))] if len(key) > 1 else []
        return [*node[:i], *below, *node[i + 1 :]]
    mapping = _mapping(node, seen)
    name = _spelling(mapping, key[0])
    if name not in mapping:
        raise ValueError(f"the recipe does not set {'.'.join((*seen, key[0]))}")
    if len(key) > 1:
        return {**mapping, name: _delete(mapping[name], key[1:], (*seen, key[0]))}
    return {other: value for other, value in mapping.items() if other != name}


def _index(node: list[Any], key: Key, *, add: bool) -> int:
    """The number of a list's entry; one more than there are stands for a new one."""
    name, entries = ".".join(key[:-1]), len(node)
    if not key[-1].isdecimal():
        raise ValueError(f"{name} is a list; name one of its entries, e.g. {name}.0.{key[-1]}")
    if int(key[-1]) >= entries + add:
        raise ValueError(f"{name} has {entries} entries, numbered from 0")
    return int(key[-1])


def _mapping(node: Any, seen: Key) -> Values:
    if node is None or isinstance(node, dict):
        return node or {}
    raise ValueError(f"{'.'.join(seen)} has no keys; give its whole value: {'.'.join(seen)}=...")


def _spelling(mapping: Values, name: str) -> Any:
    """The key as YAML read it: 0 for "0"."""
    return next((key for key in mapping if str(key) == name), name)


def _topmost(values: Values, key: Key) -> Key:
    """The shortest beginning of `key` that the values did not have yet; else `key`."""
    node: Any = values
    for depth, name in enumerate(key, start=1):
        if isinstance(node, list):
            node = dict(enumerate(node))
        node = node.get(_spelling(node, name)) if isinstance(node, dict) else None
        if node is None:
            return key[:depth]
    return key
