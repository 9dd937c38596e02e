"""A recipe is read, overridden, validated once, and all that is wrong with it said at once."""

from __future__ import annotations

import io
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from pydantic import ValidationError
from ruamel.yaml import YAML
from ruamel.yaml.nodes import MappingNode, Node, SequenceNode
from ruamel.yaml.representer import SafeRepresenter

from zoft.errors import RecipeError
from zoft.recipe import packaged
from zoft.recipe.environment import escaped, expand
from zoft.recipe.fields import Key
from zoft.recipe.messages import explain
from zoft.recipe.overrides import Values, apply
from zoft.recipe.schema import Recipe
from zoft.recipe.sections.optimizer import own_keys
from zoft.recipe.yaml import MAX_BYTES, TYPOGRAPHIC, NotYaml, read, repeated

MAX_PROBLEMS = 50  # lines; whoever has more has another file in mind


@dataclass(frozen=True, order=True)
class Problem:
    """Sorts as it reads: the file from top to bottom, then the overrides as they were given."""

    override: int  # -1 is the file
    line: int
    column: int
    text: str


@dataclass
class _Document:
    """Where each key came from: a place in the file, or an override."""

    path: Path
    root: MappingNode
    overrides: Sequence[str]
    origins: dict[Key, int] = field(default_factory=dict)

    def override(self, number: int, key: Key) -> None:
        """From here on, `key` and all below it come from this override."""
        self.origins = {k: n for k, n in self.origins.items() if k[: len(key)] != key}
        self.origins[key] = number

    def problem(self, key: Key, text: str) -> Problem:
        text = f"{_dotted(key)}: {text}"
        for depth in range(len(key), 0, -1):
            if (number := self.origins.get(key[:depth])) is not None:
                return self.in_override(number, text)
        return self.in_file(_node(self.root, key), text)

    def in_override(self, number: int, text: str) -> Problem:
        return Problem(number, 0, 0, f"override {self.overrides[number]!r}: {text}")

    def in_file(self, node: Node, text: str) -> Problem:
        line, column = node.start_mark.line + 1, node.start_mark.column + 1
        return Problem(-1, line, column, f"{self.path}:{line}:{column}: {text}")


def load_recipe(source: str | Path, overrides: Sequence[str] = ()) -> Recipe:
    """Read a recipe from a path or by the name of a packaged one, with the overrides applied and then
    `${env:NAME}` replaced.

    Raises RecipeError with every problem, one a line: its place, its key, what is expected.
    """
    path = _find(source)
    root, values = _parse(path, _read(path))
    document = _Document(path, root, overrides)
    problems = [
        document.in_file(node, f"{_dotted(key)}: written twice, first in line {first}")
        for node, key, first in repeated(root)
    ]
    for number, override in enumerate(overrides):
        try:
            values, key = apply(values, override)
        except ValueError as error:
            problems.append(document.in_override(number, str(error)))
        else:
            document.override(number, key)
    values, unset = expand(values, os.environ)
    problems += [document.problem(key, text) for key, text in unset]
    if path.name == "resolved.yaml" and isinstance(values.get("optimizer"), dict):
        values = {**values, "optimizer": own_keys(values["optimizer"])}  # of an older zoft, perhaps
    if values.get("output_dir") is None:
        values = {**values, "output_dir": f"runs/{path.stem}"}
    try:
        recipe = Recipe.model_validate(values)
    except ValidationError as error:
        unknown = {key for key, _ in unset}  # what these are is not known, so nothing is said of it
        problems += [
            document.problem(key, text)
            for key, text in explain(error, values, MAX_PROBLEMS)
            if key not in unknown
        ]
    if problems:
        lines = [_printable(problem.text) for problem in sorted(problems)]
        more = [f"{path}: and more problems"] if len(lines) > MAX_PROBLEMS else []
        raise RecipeError("\n".join([*lines[:MAX_PROBLEMS], *more]))
    return recipe


def recipe_text(source: str | Path) -> str:
    """The recipe as its author wrote it, comments included. Raises RecipeError."""
    return _read(_find(source))


class _Quoting(SafeRepresenter):
    """Writes quotes around texts that begin with a typographic one: without any they are refused."""

    def text(self, value: str) -> Any:
        style = '"' if value.startswith(tuple(TYPOGRAPHIC)) else None
        return self.represent_scalar("tag:yaml.org,2002:str", value, style=style)


_Quoting.add_representer(str, _Quoting.text)


def dump_recipe(recipe: Recipe) -> str:
    """YAML with every field, which `load_recipe` reads back to an equal recipe."""
    yaml = YAML(typ="safe", pure=True)
    yaml.Representer = _Quoting
    yaml.default_flow_style = False
    yaml.width = 2**31  # ruamel's folding of long or exotic lines loses characters
    yaml.allow_unicode = not re.search("[\x85\u2028\u2029\ufeff]", recipe.model_dump_json())
    # The order of labels has a meaning. (ruamel types this attribute as None.)
    yaml.sort_base_mapping_type_on_output = False  # type: ignore[assignment]
    stream = io.StringIO()
    yaml.dump(escaped(recipe.model_dump(mode="json")), stream)
    return stream.getvalue()


def _find(source: str | Path) -> Path:
    path = Path(source).expanduser()
    if path.is_file():
        return path
    if shipped := packaged.path_of(str(source)):
        return shipped
    if path.is_dir():
        raise RecipeError(f"{path} is a folder; a recipe is a YAML file in it")
    beside = path.parent.glob("*.yaml") if path.parent.is_dir() else ()
    names = [*packaged.names(), *(str(file) for file in beside)]
    near = get_close_matches(str(source), names, n=1)
    hint = f"; did you mean {near[0]}?" if near else ""
    raise RecipeError(
        f"{source}: no such file{hint} (packaged recipes: {', '.join(packaged.names())})"
    )


def _read(path: Path) -> str:
    try:
        if (size := path.stat().st_size) > MAX_BYTES:
            raise RecipeError(f"{path}: {size:,} bytes are no recipe (at most {MAX_BYTES:,})")
        return path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        line = error.object[: error.start].count(b"\n") + 1
        raise RecipeError(f"{path}:{line}: not UTF-8 text") from error
    except OSError as error:
        raise RecipeError(f"{path}: cannot be read: {error.strerror}") from error


def _parse(path: Path, text: str) -> tuple[MappingNode, Values]:
    """The node tree, which knows places, and the plain values."""
    try:
        root, values = read(text)
    except NotYaml as error:
        raise RecipeError(_printable(f"{path}{error.place}: {error}")) from error
    if values is None:
        raise RecipeError(f"{path}: empty; a recipe has at least model.name and data.train.path")
    if not isinstance(root, MappingNode) or not isinstance(values, dict):
        raise RecipeError(f"{path}:1:1: expected sections such as `model:`, not {_kind(values)}")
    return root, values


def _printable(text: str) -> str:
    """One line, whatever a key or a value is made of."""
    return "".join(letter if letter.isprintable() else repr(letter)[1:-1] for letter in text)


def _dotted(key: Key) -> str:
    return ".".join(name if len(name) <= 60 else f"{name[:40]}..." for name in key)


def _kind(value: Any) -> str:
    return "a list" if isinstance(value, list) else "a single value"


def _node(root: Node, key: Key) -> Node:
    """The node of the key itself, or of the nearest section that the file has."""
    place, node = root, root
    for part in key:
        if isinstance(node, MappingNode):
            pairs = [(name, value) for name, value in node.value if name.value == part]
        elif isinstance(node, SequenceNode) and part.isdecimal() and int(part) < len(node.value):
            pairs = [(node.value[int(part)],) * 2]
        else:
            pairs = []
        if not pairs:
            break
        place, node = pairs[0]
    return place
