"""`${env:NAME}` and `${env:NAME:-default}` in a recipe: what differs from machine to machine.

The default stands in for a variable that is unset or empty, as in a shell. `$${env:NAME}` is the text
`${env:NAME}`; every other dollar is a dollar.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from zoft.recipe.fields import Key
from zoft.recipe.overrides import parse

_REFERENCE = re.compile(
    r"(?P<dollars>\$+)\{(?P<prefix>oc\.)?env:(?:(?P<name>[A-Za-z_]\w*)(?::-(?P<default>[^}]*))?\})?",
    re.ASCII,
)
_SECRET = re.compile(r"(TOKEN|SECRET|PASSWORD|PASSWD|CREDENTIALS?|API_?KEY|(^|_)KEY)(_|$)", re.I)
_FORM = "write ${env:NAME} or ${env:NAME:-default}"

Problems = list[tuple[Key, str]]


def expand(values: Any, environment: Mapping[str, str]) -> tuple[Any, Problems]:
    """The values with every reference replaced, and the keys whose references cannot be.

    What a reference becomes is read as YAML reads it, unless the key holds text. Keys of mappings
    are left alone. A key with a problem keeps its text.
    """
    problems: Problems = []
    return _expand(values, (), environment, problems), problems


def escaped(values: Any) -> Any:
    """The values as a recipe must write them, so that `expand` changes nothing in them."""
    match values:
        case str():
            return re.sub(r"(\$+)(?=\{(?:oc\.)?env:)", r"\1$", values)
        case dict():
            return {key: escaped(value) for key, value in values.items()}
        case list():
            return [escaped(value) for value in values]
    return values


def _expand(value: Any, key: Key, environment: Mapping[str, str], problems: Problems) -> Any:
    match value:
        case dict():
            return {
                name: _expand(below, (*key, str(name)), environment, problems)
                for name, below in value.items()
            }
        case list():
            return [
                _expand(below, (*key, str(number)), environment, problems)
                for number, below in enumerate(value)
            ]
        case str() if "{env:" in value or "{oc.env:" in value:
            return _replaced(value, key, environment, problems)
    return value


def _replaced(text: str, key: Key, environment: Mapping[str, str], problems: Problems) -> Any:
    wrong: list[str] = []

    def replace(found: re.Match[str]) -> str:
        whole, name = found[0], found["name"]
        if len(found["dollars"]) > 1:
            return whole[1:]
        if name is None:
            wrong.append(f"{whole} is cut off or has no name; {_FORM}")
        elif found["prefix"]:
            wrong.append(f"{whole}: here it is called env; {_FORM}")
        elif _SECRET.search(name):
            wrong.append(
                f"{whole} looks like a secret, and values are written to resolved.yaml; tokens come "
                "from the Hub's own login (`hf auth login`) or HF_TOKEN, without a recipe"
            )
        elif given := environment.get(name):
            return given
        elif found["default"] is not None:
            return found["default"]
        elif name not in environment:
            wrong.append(
                f"the environment variable {name} is not set; set it, or write a default: "
                f"${{env:{name}:-...}}"
            )
        return ""

    expanded = _REFERENCE.sub(replace, text)
    problems += [(key, problem) for problem in dict.fromkeys(wrong)]
    if wrong:
        return text
    escapes_alone = all(len(found["dollars"]) > 1 for found in _REFERENCE.finditer(text))
    return expanded if escapes_alone else parse(expanded, key)
