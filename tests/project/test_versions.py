"""The versions that zoft is tested with are those that its metadata asks for."""

from __future__ import annotations

import tomllib

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version
from support import ROOT


def pinned(name: str) -> dict[str, Version]:
    lines = (ROOT / name).read_text().splitlines()
    pins = [line.split("==") for line in lines if "==" in line]
    return {canonicalize_name(package): Version(version) for package, version in pins}


def needed() -> dict[str, Requirement]:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"].values()
    lines = [*project["dependencies"], *(line for lines in extras for line in lines)]
    return {canonicalize_name(found.name): found for found in map(Requirement, lines)}


def test_the_tested_versions_satisfy_the_metadata() -> None:
    asked, latest = needed(), pinned("constraints.txt")
    wrong = [
        str(r) for n, r in asked.items() if n in latest and not r.specifier.contains(latest[n])
    ]
    assert not wrong
    assert {"torch", "transformers", "peft", "pydantic"} <= asked.keys() & latest.keys()


def test_the_oldest_tested_versions_are_the_lowest_that_the_metadata_takes() -> None:
    asked, oldest = needed(), pinned("constraints-oldest.txt")
    for name in ("torch", "transformers", "peft", "huggingface-hub", "triton"):
        [bound] = asked[name].specifier
        assert bound.operator == ">="
        assert oldest[name].release[:2] == Version(bound.version).release
