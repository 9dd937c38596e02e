"""What pydantic has against a recipe, said in the recipe's words: one line for each key."""

from __future__ import annotations

import math
import re
import reprlib
from collections.abc import Mapping
from difflib import get_close_matches
from typing import Any

from pydantic import ValidationError
from pydantic_core import ErrorDetails

from zoft.recipe.aliases import ALSO_KNOWN_AS, WITHOUT_EQUIVALENT
from zoft.recipe.fields import Key, field_of, fields, holds_texts, siblings
from zoft.recipe.sections.optimizer import RULES


def explain(
    error: ValidationError, values: Mapping[Any, Any], limit: int = 50
) -> list[tuple[Key, str]]:
    """Each wrong key with what was found and what is expected; a few more than `limit` of them at most,
    for each is compared with every key that there is."""
    found: dict[Key, list[ErrorDetails]] = {}
    for detail in error.errors(include_url=False):
        if len(found) > limit:
            break
        key = _key(detail["loc"], values)
        if detail["type"] == "union_tag_invalid":  # a rule that there is not
            key = (*key, "name")
        found.setdefault(key, []).append(detail)
    return [
        (key, _say(key, details))
        for key, details in found.items()
        # `list | "auto"`: a wrong element says more than "it is not auto either".
        if not any(len(other) > len(key) and other[: len(key)] == key for other in found)
    ]


def unknown(key: Key) -> str:
    """Where a key that does not exist was probably meant to go."""
    *section, name = key
    there = siblings(tuple(section))
    elsewhere = [".".join(known) for known in fields() if known[-1] == name]
    if ours := ALSO_KNOWN_AS.get(name):
        return f"no such key; zoft calls it {ours}"
    if name in WITHOUT_EQUIVALENT:
        return f"no such key; {WITHOUT_EQUIVALENT[name]}"
    if elsewhere:
        return f"no such key here; it belongs at {' or '.join(elsewhere)}"
    if near := get_close_matches(name, there, n=1):
        return f"no such key; did you mean {'.'.join((*section, near[0]))}?"
    if near := get_close_matches(name, [known[-1] for known in fields()], n=1):
        names = [".".join(known) for known in fields() if known[-1] == near[0]]
        return f"no such key; did you mean {' or '.join(names)}?"
    return f"no such key; expected one of {', '.join(there)}"


def _key(location: tuple[int | str, ...], values: Any) -> Key:
    """pydantic's location without the names of union members, which no value contains."""
    key: Key = ()
    for part in location:
        if isinstance(values, Mapping):
            names = {str(name): name for name in values}
            member = part in RULES or re.fullmatch(r"DataSource|\w+\[.*\]", str(part))
            if str(part) not in names and member:
                continue
            values = values.get(names.get(str(part)))
        elif isinstance(values, list) and isinstance(part, int):
            values = values[part] if part < len(values) else None
        elif values is not None:
            continue
        key = (*key, str(part))
    return key


def _say(key: Key, details: list[ErrorDetails]) -> str:
    first = details[0]
    field = field_of(key)
    description = field.description if field else ""
    match first["type"]:
        case "missing":
            return f"missing. {description}"
        case "extra_forbidden":
            return _of_another_rule(key, first) or unknown(key)
        case "union_tag_invalid":
            return f"found {_shown(first['input']['name'])}; expected {' or '.join(RULES)}"
        case "value_error":
            return str(first["ctx"]["error"])
        case "string_pattern_mismatch":
            return f"found {_shown(first['input'])}; expected {description}"
        case _:
            expected = " or ".join(dict.fromkeys(_expected(key, detail) for detail in details))
            quoted = any(d["type"] in ("int_type", "float_type") for d in details) and _is_number(
                first
            )
            hint = ", without quotes" if quoted else ""
            return f"found {_shown(first['input'])}; expected {expected}{hint}"


def _is_number(detail: ErrorDetails) -> bool:
    """Whether what was found is a number that is written as text."""
    try:
        return isinstance(detail["input"], str) and math.isfinite(float(detail["input"]))
    except ValueError:
        return False


def _of_another_rule(key: Key, detail: ErrorDetails) -> str | None:
    """What is wrong with a key that only other update rules have; None for other keys."""
    rules = [name for name, rule in RULES.items() if key[-1] in rule.model_fields]
    if key[:-1] != ("optimizer",) or not rules:
        return None
    ours = detail["loc"][1]
    return (
        f"no key of {ours}, only of {' and '.join(rules)}: leave it out, or set "
        f"optimizer.name: {rules[0]}"
    )


def _expected(key: Key, detail: ErrorDetails) -> str:
    bound = detail.get("ctx", {})
    match detail["type"]:
        case "int_type":
            return "a whole number"
        case "float_type" | "finite_number":
            return "a finite number"
        case "greater_than":
            return f"more than {bound['gt']:g}"
        case "greater_than_equal":
            return f"at least {bound['ge']:g}"
        case "less_than":
            return f"less than {bound['lt']:g}"
        case "less_than_equal":
            return f"at most {bound['le']:g}"
        case "bool_type":
            return "true or false"
        case "string_type":
            return "text; put it in quotes" if isinstance(detail["input"], int | float) else "text"
        case "string_too_short":
            return "some text"
        case "list_type" if siblings(key):
            return "a list of such sections"
        case "list_type" if holds_texts(key):
            return "a list of texts"
        case "list_type":
            return "a list such as [q_proj, '*.bias']"
        case "tuple_type" | "too_long":
            return "two numbers such as [0.9, 0.99]"
        case "dict_type":
            return "a mapping such as {0: terrible, 1: great}"
        case "model_type" | "model_attributes_type":
            return f"a section with the keys {', '.join(siblings(key))}"
        case "literal_error":
            return str(bound["expected"]).replace("'", "")
        case _:
            return detail["msg"]


def _shown(value: Any) -> str:
    if value is None:
        return "nothing"
    return str(value).lower() if isinstance(value, bool) else reprlib.repr(value)
