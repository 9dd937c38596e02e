"""Replace local paths in uploaded files: pure functions from text to text."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from zoft.recipe.load import dump_recipe
from zoft.recipe.schema import Recipe
from zoft.recipe.sections.data import DataSource, listed
from zoft.recipe.sections.hub import HubSection
from zoft.runs.journal import Header
from zoft.sharing.base_model import Base, is_local

BASE_KEYS = ("base_model_name_or_path", "_name_or_path", "name_or_path")


def shared_recipe(recipe: Recipe, base: Base) -> str:
    """The recipe as YAML that others can use: the base by its Hub id, data files by their names alone.

    It does not push: where to is the business of whoever runs it.
    """
    model = recipe.model.model_copy(update={"name": base.name, "revision": base.revision})
    data = recipe.data
    sources = {
        name: [_shared_source(source) for source in listed(getattr(data, name))]
        for name in ("train", "eval", "test")
        if getattr(data, name) is not None
    }
    tune = recipe.tune.model_copy(update={"adapter": _shared_adapter(recipe.tune.adapter)})
    changed = {
        "model": model,
        "data": data.model_copy(update=_unlisted(sources)),
        "tune": tune,
        "output_dir": f"runs/{Path(recipe.output_dir or 'run').name}",
        "hub": HubSection(),
    }
    return dump_recipe(Recipe.model_validate(_by_name(recipe.model_copy(update=changed))))


def _shared_source(source: DataSource) -> DataSource:
    local = is_local(source.path)
    return source.model_copy(update={"path": Path(source.path).name}) if local else source


def _unlisted(sources: dict[str, list[DataSource]]) -> dict[str, DataSource | list[DataSource]]:
    return {name: found[0] if len(found) == 1 else found for name, found in sources.items()}


def _shared_adapter(adapter: str | None) -> str | None:
    """What a run began with, where others can have it; start/ holds it anyway."""
    return None if adapter is None or is_local(adapter) else adapter


def _by_name(recipe: Recipe) -> Any:
    """Its values; a text that names something on this machine is cut to the last part of the path."""
    return _mapped(recipe.model_dump(), _cut)


def shared_config(text: str, base: Base) -> str:
    """A JSON config of transformers or peft: what it calls its base becomes the Hub id, and the
    revision (of an adapter's config) the base's commit."""
    config = json.loads(text)
    if not isinstance(config, dict):
        return text
    changed = _mapped(config, _cut)
    for key in BASE_KEYS:
        if key in config:
            changed[key] = base.name
    if BASE_KEYS[0] in config:
        changed["revision"] = base.revision
    return text if changed == config else json.dumps(changed, indent=2, sort_keys=True) + "\n"


def shared_header(header: Header, base: Base) -> Header:
    """A journal's header that names the base by its Hub id."""
    named = {"name": base.name, "revision": base.revision}
    tune = header.get("tune", {})
    if tune.get("adapter"):
        header = {**header, "tune": {**tune, "adapter": _shared_adapter(tune["adapter"])}}
    return {**_mapped(header, _cut), "base": {**header["base"], **named}}


def without_places(text: str, places: Sequence[Path]) -> str:
    """The text without these folders before its paths (longest first, so that no part is left)."""
    for place in sorted({str(place) for place in places}, key=len, reverse=True):
        if len(place) > 1:
            text = text.replace(f"{place}/", "").replace(place, Path(place).name)
    return text


def _cut(text: str) -> str:
    path = Path(text).expanduser() if text.startswith(("/", "~")) else None
    try:  # "/" or "/data" may be a separator or a token, and tells nothing
        return path.name if path and len(path.parts) > 2 and path.exists() else text
    except OSError:  # too long for a path: a text
        return text


def _mapped(value: Any, change: Callable[[str], str]) -> Any:
    """`value` with `change` made to every text in it."""
    match value:
        case str():
            return change(value)
        case dict():
            return {key: _mapped(item, change) for key, item in value.items()}
        case list():
            return [_mapped(item, change) for item in value]
        case _:
            return value
