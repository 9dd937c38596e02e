"""The schema as JSON Schema: for editors, and as the source of the reference page."""

from __future__ import annotations

import copy
from typing import Any

from zoft.recipe.schema import Recipe

Node = dict[str, Any]

_REFERENCE = {
    "type": "string",
    "pattern": r"\$\{env:[A-Za-z_]\w*(:-[^}]*)?\}",
    "description": "A value from the environment: ${env:NAME} or ${env:NAME:-default}.",
}


def plain_schema() -> Node:
    """As pydantic says it, without the titles that repeat the names."""
    schema = Recipe.model_json_schema()
    for section in (schema, *schema["$defs"].values()):
        section.pop("title", None)
        for node in section.get("properties", {}).values():
            node.pop("title", None)
            if "oneOf" in node:  # an optimizer without a name would be of every rule
                node["anyOf"] = node.pop("oneOf")
    return schema


def editor_schema() -> Node:
    """What a recipe's text may hold: also references to the environment, and sections left empty."""
    schema = copy.deepcopy(plain_schema())
    definitions = schema["$defs"]
    for section in (schema, *definitions.values()):
        for node in section.get("properties", {}).values():
            _loosen(node, definitions)
    definitions["FromEnvironment"] = _REFERENCE
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "A recipe of zoft",
        **schema,
    }


def options(node: Node) -> list[Node]:
    """What a node may be: the members of its union, or itself."""
    found: list[Node] = node.get("anyOf") or [node]
    return found


def section_of(node: Node, definitions: Node) -> Node | None:
    """The section that a node refers to, if it does."""
    name = str(node.get("$ref", "")).rpartition("/")[2]
    found = definitions.get(name, node)
    return found if "properties" in found else None


def _loosen(node: Node, definitions: Node) -> None:
    """Take the alternatives that hold before the recipe is read; in place."""
    choices = options(node)
    sections = [found for one in choices if (found := section_of(one, definitions))]
    more: list[Node] = []
    if not all("required" in section for section in sections):
        more = [{"type": "null"}]  # all of its keys are commented out
    elif not sections and not any(_takes_any_text(one) for one in choices):
        more = [{"$ref": "#/$defs/FromEnvironment"}]
    for one in choices:
        for part in [
            one.get("items"),
            one.get("additionalProperties"),
            *one.get("prefixItems", ()),
        ]:
            if isinstance(part, dict) and "$ref" not in part:
                _loosen(part, definitions)
    if sections:
        node.pop("default", None)
    if more and not any(one in choices for one in more):
        said = {key: node.pop(key) for key in ("description", "default") if key in node}
        choices = [copy.deepcopy(one) for one in choices]
        node.clear()
        node.update(anyOf=[*choices, *more], **said)


def _takes_any_text(node: Node) -> bool:
    limits = ("const", "enum", "pattern")
    return node.get("type") == "string" and not any(limit in node for limit in limits)
