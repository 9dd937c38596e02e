"""The order of folders in CONTRIBUTING.md, held against the sources, which are read and not imported.

Imports point down in that order, those inside functions too. On every level neither files nor folders
import each other in a circle.
"""

from __future__ import annotations

import ast
import re
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from graphlib import CycleError, TopologicalSorter
from typing import NamedTuple

import pytest
from support import ROOT

HEAVY = {"torch", "transformers", "datasets", "peft", "numba", "numpy", "safetensors", "wandb"}
ENTRIES = 12  # at most so many files and folders in one folder
ENTRY_POINTS = {"zoft", "zoft.__main__"}  # a version number and `python -m zoft`: no layer

Graph = Mapping[str, set[str]]


class Import(NamedTuple):
    """`name` is the module as it is written; `at_import` if it runs with the module itself."""

    name: str
    at_import: bool


def imports(source: str) -> Iterator[Import]:
    """Every import of a module; `from a import b` gives `a.b`, which may be a name in a."""

    def walk(node: ast.AST, at_import: bool) -> Iterator[Import]:
        for child in ast.iter_child_nodes(node):
            match child:
                case ast.Import(names=names):
                    yield from (Import(alias.name, at_import) for alias in names)
                case ast.ImportFrom(module=module, names=names, level=level):
                    assert level == 0, "relative imports hide where a name comes from"
                    yield from (Import(f"{module}.{alias.name}", at_import) for alias in names)
                case ast.FunctionDef() | ast.AsyncFunctionDef() | ast.Lambda():
                    yield from walk(child, False)
                case _:
                    yield from walk(child, at_import)

    return walk(ast.parse(source), True)


def module_of(name: str, modules: Iterable[str]) -> str:
    """The module that an import of `name` loads: zoft.a.b, or zoft.a if b is a name in it."""
    return name if name in modules else name.rpartition(".")[0]


def layer_of(module: str) -> str:
    """The file or folder of zoft/ that a module is, or lies in."""
    return module.split(".")[1]


def upward(graph: Graph, order: list[str]) -> list[str]:
    """Imports that point up."""
    return [
        f"{module} imports {other}"
        for module, others in graph.items()
        for other in sorted(others)
        if not {module, other} & ENTRY_POINTS
        and order.index(layer_of(other)) > order.index(layer_of(module))
    ]


def cycle(graph: Graph) -> list[str]:
    """The nodes of one circle, or nothing."""
    try:
        list(TopologicalSorter(graph).static_order())
    except CycleError as error:
        return list(error.args[1])
    return []


def folders(graph: Graph) -> dict[str, dict[str, set[str]]]:
    """For every folder: which of its files and folders imports which other."""
    found: dict[str, dict[str, set[str]]] = defaultdict(lambda: defaultdict(set))
    for module, others in graph.items():
        for other in others - {module}:
            ours, theirs = module.split("."), other.split(".")
            same = next(
                (i for i, (a, b) in enumerate(zip(ours, theirs, strict=False)) if a != b), 0
            )
            if same:
                found[".".join(ours[:same])][ours[same]].add(theirs[same])
    return found


@pytest.fixture(scope="module")
def sources() -> dict[str, list[Import]]:
    """Module name -> what it imports."""
    found = {}
    for path in sorted((ROOT / "zoft").rglob("*.py")):
        name = ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
        found[name] = list(imports(path.read_text(encoding="utf-8")))
    assert {"zoft", "zoft.cli", "zoft.cli.main"} <= set(found)
    return found


@pytest.fixture(scope="module")
def graph(sources: dict[str, list[Import]]) -> dict[str, set[str]]:
    """Module name -> the modules of zoft that it imports."""
    return {
        module: {
            module_of(name, sources)
            for name, _ in found
            if name == "zoft" or name.startswith("zoft.")
        }
        for module, found in sources.items()
    }


@pytest.fixture(scope="module")
def order() -> list[str]:
    """The layers from the lowest to the highest, as CONTRIBUTING.md has them."""
    text = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    [line] = re.finditer(r"^    (errors < .*)$", text, re.MULTILINE)
    return line[1].split(" < ")


def test_the_order_names_every_file_and_folder_of_the_package(
    sources: dict[str, list[Import]], order: list[str]
) -> None:
    assert sorted(order) == sorted({layer_of(m) for m in sources if m not in ENTRY_POINTS})


def test_every_import_of_zoft_is_of_a_module_that_exists(graph: Graph) -> None:
    assert sorted(set().union(*graph.values()) - set(graph)) == []


def test_imports_point_down(graph: Graph, order: list[str]) -> None:
    assert upward(graph, order) == []


def test_modules_import_each_other_in_no_circle(graph: Graph) -> None:
    assert cycle(graph) == []


def test_folders_import_each_other_in_no_circle(graph: Graph) -> None:
    found = {folder: cycle(inside) for folder, inside in folders(graph).items()}
    assert {folder: circle for folder, circle in found.items() if circle} == {}


def test_no_folder_is_crowded(sources: dict[str, list[Import]]) -> None:
    entries: dict[str, set[str]] = defaultdict(set)
    for module in sources.keys() - ENTRY_POINTS:
        parts = module.split(".")
        for depth in range(1, len(parts)):
            entries[".".join(parts[:depth])].add(parts[depth])
    assert len(entries) > 10
    assert {name: len(found) for name, found in entries.items() if len(found) > ENTRIES} == {}


def test_the_command_line_loads_no_framework(
    sources: dict[str, list[Import]], graph: Graph
) -> None:
    """Neither itself nor through what it imports at module level."""
    todo, loaded = ["zoft.cli.main", "zoft.__main__"], set()
    while todo:
        module = todo.pop()
        loaded.add(module)
        at_import = [name for name, now in sources[module] if now]
        assert not HEAVY & {name.partition(".")[0] for name in at_import}, module
        todo += {module_of(name, graph) for name in at_import if name.startswith("zoft")} - loaded
    assert "zoft.errors" in loaded


def test_the_schema_and_the_errors_need_no_framework(sources: dict[str, list[Import]]) -> None:
    light = [m for m in sources if m == "zoft.errors" or m.startswith("zoft.recipe")]
    assert len(light) > 5
    for module in light:
        named = {name.partition(".")[0] for name, _ in sources[module]}
        assert not HEAVY & named, module


# -- the reader itself ------------------------------------------------------------------------


def test_imports_inside_functions_are_seen_and_told_apart() -> None:
    source = """
import torch.nn as nn
if True:
    from zoft.data import order
class A:
    import early
    def f(self):
        from zoft.training.run import train
        import late.part
"""
    assert list(imports(source)) == [
        Import("torch.nn", True),
        Import("zoft.data.order", True),
        Import("early", True),
        Import("zoft.training.run.train", False),
        Import("late.part", False),
    ]


def test_what_is_wrong_would_be_found() -> None:
    graph = {
        "zoft": set(),
        "zoft.a": {"zoft", "zoft.b.x.one"},
        "zoft.b.x.one": {"zoft.c"},
        "zoft.b.x.two": {"zoft.b.y.one"},
        "zoft.b.y.one": set(),
        "zoft.b.y.two": {"zoft.b.x.one"},
        "zoft.c": {"zoft.b.x.one"},
    }
    assert upward(graph, ["a", "b", "c"]) == [
        "zoft.a imports zoft.b.x.one",
        "zoft.b.x.one imports zoft.c",
    ]
    assert set(cycle(graph)) == {"zoft.b.x.one", "zoft.c"}
    assert set(cycle(folders(graph)["zoft"])) == {"b", "c"}
    assert set(cycle(folders(graph)["zoft.b"])) == {"x", "y"}  # files alone would not show it
    assert module_of("zoft.c.name", graph) == "zoft.c"
