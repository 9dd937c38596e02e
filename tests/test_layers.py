"""The layers of CONTRIBUTING.md's map (and ARCHITECTURE's), read from the sources without importing.

Imports point down; within a layer they have no cycle; those inside functions count as well.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator, Mapping
from graphlib import CycleError, TopologicalSorter
from pathlib import Path
from typing import NamedTuple

import pytest

ROOT = Path(__file__).parents[1]
HEAVY = {"torch", "transformers", "datasets", "peft", "numba", "numpy", "safetensors", "wandb"}
# What no table names: the package itself (a version number) and `python -m zoft`.
UNNAMED = {"zoft": 0, "zoft.__main__": 5}


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


def module_of(name: str, modules: Mapping[str, object]) -> str:
    """The module that an import of `name` loads: zoft.a.b, or zoft.a if b is a name in it."""
    return name if name in modules else name.rpartition(".")[0]


def layer_of(module: str, layers: Mapping[str, int]) -> int | None:
    """By the module's own name, or by its package's."""
    if module in UNNAMED:
        return UNNAMED[module]
    return layers.get(".".join(module.split(".")[:2]))


def upward(graph: Mapping[str, set[str]], layers: Mapping[str, int]) -> list[str]:
    """Imports that point up."""
    return [
        f"{module} imports {other}"
        for module, others in graph.items()
        for other in sorted(others)
        if (layer_of(other, layers) or 0) > (layer_of(module, layers) or 0)
    ]


def cycle(graph: Mapping[str, set[str]]) -> list[str]:
    """The modules of one cycle, or nothing."""
    try:
        list(TopologicalSorter(graph).static_order())
    except CycleError as error:
        return list(error.args[1])
    return []


@pytest.fixture(scope="module")
def sources() -> dict[str, list[Import]]:
    """Module name -> what it imports."""
    found = {}
    for path in sorted((ROOT / "zoft").rglob("*.py")):
        name = ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
        found[name] = list(imports(path.read_text(encoding="utf-8")))
    assert {"zoft", "zoft.cli", "zoft.trainer", "zoft.zo", "zoft.zo.probe"} <= set(found)
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
def layers() -> dict[str, int]:
    """`zoft.NAME` -> its layer, from the table in CONTRIBUTING.md."""
    text = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    found: dict[str, int] = {}
    for layer, names in re.findall(r"^\| (\d) \| ([^|]*) \|", text, re.MULTILINE):
        for name in re.findall(r"`(\w+)(?:\.py|/)`", names):
            assert f"zoft.{name}" not in found, f"{name} stands in two layers"
            found[f"zoft.{name}"] = int(layer)
    assert set(found.values()) == {0, 1, 2, 3, 4, 5}
    return found


def test_the_map_is_of_this_code(sources: dict[str, list[Import]], layers: dict[str, int]) -> None:
    assert [module for module in sources if layer_of(module, layers) is None] == []
    assert [name for name in layers if name not in sources] == []


def test_the_map_is_the_architectures(layers: dict[str, int]) -> None:
    design = {
        5: "cli",
        4: "run evaluate plan replay hub report",
        3: "trainer scoring journal checkpoint tracking",
        2: "models data objectives",
        1: "zo offload",
        0: "kernels recipe errors",
    }
    wanted = {f"zoft.{name}": layer for layer, names in design.items() for name in names.split()}
    assert {name: layers[name] for name in wanted if name in layers} == {
        name: layer for name, layer in wanted.items() if name in layers
    }


def test_every_import_of_zoft_is_of_a_module_that_exists(graph: dict[str, set[str]]) -> None:
    assert sorted(set().union(*graph.values()) - set(graph)) == []


def test_imports_point_down(graph: dict[str, set[str]], layers: dict[str, int]) -> None:
    assert upward(graph, layers) == []


def test_imports_have_no_cycle(graph: dict[str, set[str]]) -> None:
    assert cycle(graph) == []


def test_the_command_line_loads_no_framework(
    sources: dict[str, list[Import]], graph: dict[str, set[str]]
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
        from zoft.run import train
        import late.part
"""
    assert list(imports(source)) == [
        Import("torch.nn", True),
        Import("zoft.data.order", True),
        Import("early", True),
        Import("zoft.run.train", False),
        Import("late.part", False),
    ]


def test_what_is_wrong_would_be_found() -> None:
    layers = {"zoft.a": 0, "zoft.b": 1, "zoft.c": 1}
    graph = {
        "zoft": set(),
        "zoft.a": {"zoft", "zoft.b.x"},
        "zoft.b.x": {"zoft.c"},
        "zoft.c": {"zoft.b.x"},
    }
    assert upward(graph, layers) == ["zoft.a imports zoft.b.x"]
    assert set(cycle(graph)) == {"zoft.b.x", "zoft.c"}
    assert module_of("zoft.c.name", graph) == "zoft.c"
    assert layer_of("zoft.new", layers) is None
