"""YAML 1.2 to nodes and values, within bounds that no recipe reaches: junk is refused at once."""

from __future__ import annotations

from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.error import MarkedYAMLError, YAMLError
from ruamel.yaml.events import (
    CollectionEndEvent,
    CollectionStartEvent,
    NodeEvent,
)
from ruamel.yaml.nodes import CollectionNode, MappingNode, Node, ScalarNode

MAX_BYTES = 128 * 1024  # of a file; the longest packaged recipe has some thousand
MAX_VALUES, MAX_DEPTH = 5_000, 32  # keys and values, with what aliases repeat; sections in sections


class NotYaml(ValueError):
    """What is wrong, in one line, and where: `:line:column` from 1, or nothing."""

    def __init__(self, problem: str, mark: Any = None) -> None:
        super().__init__(" ".join(problem.split()))
        self.place = f":{mark.line + 1}:{mark.column + 1}" if mark else ""


def read(text: str) -> tuple[Node | None, Any]:
    """The node tree, which knows places, and the plain values. Raises NotYaml.

    1e-6 is a number, `no` is text, and a key that is written twice is left to the caller to find.
    """
    try:
        _require_small(text)
        root = _yaml().compose(text)
        _require_finite(root)
        return root, _yaml().load(text)
    except MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        raise NotYaml(f"not YAML: {error.problem}{_braces(text, mark)}", mark) from error
    except NotYaml:
        raise
    except (YAMLError, ValueError, TypeError, RecursionError) as error:
        raise NotYaml(f"not YAML: {error}") from error


def _yaml() -> YAML:
    yaml = YAML(typ="safe", pure=True)
    yaml.allow_duplicate_keys = True
    return yaml


def _braces(text: str, mark: Any) -> str:
    """Between braces and brackets the braces of a reference mean something else to YAML."""
    lines = text.splitlines()
    inside = mark is not None and mark.line < len(lines) and "${env:" in lines[mark.line]
    return '; between { } or [ ], write "${env:NAME}" in quotes' if inside else ""


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
