"""Every key of a recipe in words: its type, its default, what it means."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

from zoft.recipe.docs.json_schema import Node, options, plain_schema, section_of


@dataclass(frozen=True, slots=True)
class Entry:
    """One key. `default` is None where the recipe must give a value."""

    key: str
    type: str
    default: str | None
    description: str
    is_section: bool = False

    @property
    def section(self) -> str:
        return self.key.rpartition(".")[0]


def entries() -> list[Entry]:
    """All keys, sections included, in the schema's order."""
    schema = plain_schema()
    return list(_walk(schema, "", schema["$defs"]))


def _walk(section: Node, prefix: str, definitions: Node) -> Iterator[Entry]:
    required = section.get("required", ())
    for name, node in section["properties"].items():
        key = prefix + name
        below = _sections(node, definitions)
        default = None if name in required else _default(node.get("default"))
        if below and default not in (None, "empty", "[]"):
            default = "its defaults"
        yield Entry(
            key, _type(node, definitions), default, node.get("description", ""), bool(below)
        )
        found: dict[str, Entry] = {}
        for suffix, nested in below:  # one source, or a list of the same; one rule, or another
            for entry in _walk(nested, f"{key}.{suffix}", definitions):
                same = entry.key.replace(".0.", ".")
                found[same] = _both(found[same], entry) if same in found else entry
        yield from found.values()


def _both(one: Entry, other: Entry) -> Entry:
    """The key as two members of a union have it."""
    said, kind = one.description, one.type
    if other.description not in said:
        said = f"{said} {other.description}"
    if other.type != kind:
        kind = f"{kind} or {other.type}"
    return replace(one, type=kind, description=said)


def _sections(node: Node, definitions: Node) -> list[tuple[str, Node]]:
    """The sections that a value may hold, itself or as items of a list; each with the key between."""
    found = []
    for one in options(node):
        if section := section_of(one, definitions):
            found.append(("", section))
        for item in options(one.get("items", {})):
            if section := section_of(item, definitions):
                found.append(("0.", section))
    return found


def _type(node: Node, definitions: Node) -> str:
    said = dict.fromkeys(_words(one, definitions) for one in options(node))
    if "empty" in said:  # last, whatever the order in the union
        said = dict.fromkeys([*(word for word in said if word != "empty"), "empty"])
    return ", or ".join(said)


def _words(node: Node, definitions: Node) -> str:
    if "title" in node:
        return str(node["title"])
    if section_of(node, definitions):
        return "section"
    if "$ref" in node:
        return _type(definitions[node["$ref"].rpartition("/")[2]], definitions)
    if "anyOf" in node:
        return _type(node, definitions)
    if "const" in node:
        return _default(node["const"])
    if "enum" in node:
        *others, last = map(_default, node["enum"])
        return f"{', '.join(others)} or {last}" if others else last
    match node.get("type"):
        case "integer":
            return f"whole number{_bounds(node)}"
        case "number":
            return f"number{_bounds(node)}"
        case "boolean":
            return "true or false"
        case "string":
            return "text"
        case "null":
            return "empty"
        case "array":
            if members := node.get("prefixItems"):
                return f"list of {len(members)}, each {_type(members[0], definitions)}"
            return f"list, each {_type(node.get('items', {}), definitions)}"
        case "object":
            return f"mapping of text to {_type(node.get('additionalProperties', {}), definitions)}"
    return "any value"


def _bounds(node: Node) -> str:
    said = [
        f"{word} {_default(node[limit])}"
        for limit, word in (
            ("minimum", "at least"),
            ("exclusiveMinimum", "above"),
            ("maximum", "at most"),
            ("exclusiveMaximum", "below"),
        )
        if limit in node
    ]
    return f" {' and '.join(said)}" if said else ""


def _default(value: Any) -> str:
    """As a recipe would write it."""
    match value:
        case None:
            return "empty"
        case str():
            return value or '""'
        case float():
            return f"{value:g}".replace("e-0", "e-")
    return json.dumps(value)
