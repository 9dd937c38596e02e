"""YAML 1.2 to nodes and values, within bounds that no recipe reaches: junk is refused at once."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.error import MarkedYAMLError, YAMLError
from ruamel.yaml.events import (
    CollectionEndEvent,
    CollectionStartEvent,
    NodeEvent,
)
from ruamel.yaml.nodes import CollectionNode, MappingNode, Node, ScalarNode, SequenceNode

MAX_BYTES = 128 * 1024  # of a file; the longest packaged recipe has some thousand
MAX_VALUES, MAX_DEPTH = 5_000, 32  # keys and values, with what aliases repeat; sections in sections
MERGE, TEXT = "tag:yaml.org,2002:merge", "tag:yaml.org,2002:str"
TYPOGRAPHIC = "\u201c\u201d\u201e\u201f\xab\xbb\u2018\u2019\u201a"  # letters to YAML and JSON


class NotYaml(ValueError):
    """What is wrong, in one line, and where: `:line:column` from 1, or nothing."""

    def __init__(self, problem: str, mark: Any = None) -> None:
        super().__init__(" ".join(problem.split()))
        self.place = f":{mark.line + 1}:{mark.column + 1}" if mark else ""


class Misquoted(NotYaml):
    """A text that begins with a quote of typesetters: whether it is meant cannot be told."""


def read(text: str) -> tuple[Node | None, Any]:
    """The node tree, which knows places, and the plain values. Raises NotYaml.

    1e-6 is a number, `no` is text, and a key is text as it is written (`01`, `TRUE`); one that is
    written twice is left to the caller to find.
    """
    try:
        _require_small(text)
        root = _yaml().compose(text)
        _require_finite(root)
        return root, _values(text)
    except MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        raise NotYaml(f"not YAML: {error.problem}{_hint(text, mark)}", mark) from error
    except NotYaml:
        raise
    except (YAMLError, ValueError, TypeError, RecursionError) as error:
        raise NotYaml(f"not YAML: {error}") from error


def repeated(root: Node | None) -> Iterator[tuple[Node, tuple[str, ...], int]]:
    """Keys written twice in one mapping, each with its full name and the line of the first: YAML forbids
    them, and most readers keep one silently."""
    seen: set[int] = set()

    def within(
        node: Node | None, key: tuple[str, ...]
    ) -> Iterator[tuple[Node, tuple[str, ...], int]]:
        if id(node) in seen:  # an anchor
            return
        seen.add(id(node))
        if isinstance(node, SequenceNode):
            for item in node.value:
                yield from within(item, key)
        elif isinstance(node, MappingNode):
            lines: dict[str, int] = {}
            for name, value in node.value:
                below = (*key, str(name.value))
                if below[-1] in lines:
                    yield name, below, lines[below[-1]]
                lines.setdefault(below[-1], name.start_mark.line + 1)
                yield from within(value, below)

    return within(root, ())


def _yaml() -> YAML:
    yaml = YAML(typ="safe", pure=True)
    yaml.allow_duplicate_keys = True
    return yaml


def _values(text: str) -> Any:
    """The plain values, from nodes of their own: to merge anchors changes the nodes."""
    yaml = _yaml()
    root = yaml.compose(text)
    if root is None:
        return None
    _name_keys(root, set())
    return yaml.constructor.construct_document(root)


def _name_keys(node: Node, seen: set[int]) -> None:
    """Make every key a text: to YAML, 01 and 1.10 are numbers like 1 and 1.1, TRUE is truth."""
    if id(node) in seen:
        return
    seen.add(id(node))
    if isinstance(node, MappingNode):
        node.value = [
            (key if key.tag == MERGE else ScalarNode(TEXT, key.value, key.start_mark), value)
            for key, value in node.value
        ]
    for below in _below(node):
        _name_keys(below, seen)


def _hint(text: str, mark: Any) -> str:
    """What to do about a text that means something else to YAML: quotes, mostly."""
    lines = text.splitlines()
    if mark is None or mark.line >= len(lines):
        return ""
    line = lines[mark.line]
    before = line[: mark.column].rstrip()
    if "\t" in line:
        return "; indent with blanks, not with tabs"
    if "\u00a0" in line:
        return "; it holds a no-break space, write a plain one"
    if "${" in line:
        return '; between { } or [ ], write "${env:NAME}" in quotes'
    if before.endswith(("}", "]")):
        return "; a text that begins with a brace or bracket is written in quotes"
    if before.endswith(('"', "'")):
        return "; quotes go around the whole text"
    if line[mark.column : mark.column + 1] in tuple(":%@`*&!|>"):
        return "; a text with such a character is written in quotes"
    return ""


def _require_small(text: str) -> None:
    """Before anything is built: composing takes a Python frame for each level."""
    number = depth = 0
    for event in _yaml().parse(text):
        number += isinstance(event, NodeEvent)
        depth += isinstance(event, CollectionStartEvent) - isinstance(event, CollectionEndEvent)
        if depth > MAX_DEPTH:
            raise NotYaml(f"nested more than {MAX_DEPTH} deep", event.start_mark)
        if number > MAX_VALUES:
            raise NotYaml(f"more than {MAX_VALUES} keys and values", event.start_mark)


def _require_finite(root: Node | None) -> None:
    """Refuse aliases that grow without measure, and keys that are no names."""
    sizes: dict[int, int] = {}

    def size(node: Node) -> int:
        if id(node) in sizes:
            if sizes[id(node)] == 0:  # not counted yet: we are inside of it
                raise NotYaml("an anchor that holds itself", node.start_mark)
            return sizes[id(node)]
        sizes[id(node)] = 0
        if (
            isinstance(node, ScalarNode)
            and node.style is None
            and node.value[:1] in (*TYPOGRAPHIC,)
        ):
            raise Misquoted(
                f'{node.value[:1]} is no quote to YAML; write " instead, or around it',
                node.start_mark,
            )
        total = 1 + sum(map(size, _below(node)))
        if total > MAX_VALUES:
            raise NotYaml(f"anchors repeat more than {MAX_VALUES} values", node.start_mark)
        sizes[id(node)] = total
        return total

    if root is not None:
        size(root)


def _below(node: Node) -> list[Node]:
    if isinstance(node, MappingNode):
        for key, _ in node.value:
            if not isinstance(key, ScalarNode):
                raise NotYaml("a key must be a name, not a list or a section", key.start_mark)
        return [part for pair in node.value for part in pair]
    return list(node.value) if isinstance(node, CollectionNode) else []
