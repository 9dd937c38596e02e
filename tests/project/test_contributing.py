"""CONTRIBUTING's steps, followed: a rule that they describe is added to a copy of the package."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

from support import ROOT, small

GUIDE = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")


def python(package: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run zoft from the copy."""
    return subprocess.run(
        [sys.executable, "-m", "zoft", *arguments],
        cwd=package,
        env={**os.environ, "PYTHONPATH": str(package)},
        capture_output=True,
        text=True,
        check=False,
    )


def test_a_rule_is_one_file_and_one_line(tmp_path: Path) -> None:
    steps = GUIDE[GUIDE.index("## Add an update rule") : GUIDE.index("## Add a probe structure")]
    [code] = re.findall(r"```python\n(.*?)```", steps, re.DOTALL)
    [line] = re.findall(r"^ *(\| Annotated\[.*\])$", steps, re.MULTILINE)
    [(rule, name)] = re.findall(r"Annotated\[(\w+), Tag\(\"(.*)\"\)", line)
    package = tmp_path / "copy"
    shutil.copytree(ROOT / "zoft", package / "zoft", ignore=shutil.ignore_patterns("__pycache__"))
    sections = package / "zoft/recipe/sections"
    (sections / "optimizers/slope_sign.py").write_text(code)
    table = (sections / "optimizer.py").read_text()
    first = table.index("    | Annotated[")
    edited = f"{table[:first]}    {line}\n{table[first:]}"
    imported = f"from zoft.recipe.sections.optimizers.slope_sign import {rule}\n"
    before = edited.index("from zoft.recipe.sections.optimizers")
    (sections / "optimizer.py").write_text(f"{edited[:before]}{imported}{edited[before:]}")

    recipe = small.write(tmp_path)
    run = [f"optimizer={{name: {name}}}", "train.steps=2", "~eval", "~checkpoint"]
    trained = python(package, "train", str(recipe), *run)
    assert trained.returncode == 0, trained.stderr
    assert f"{name}, lr 0.0001" in trained.stdout
    explained = python(package, "schema", "--field", "optimizer.name")
    assert name in explained.stdout
    refused = python(package, "train", str(recipe), f"optimizer={{name: {name}, betas: [0, 0]}}")
    assert refused.returncode == 2
    assert f"no key of {name}, only of r-adazo" in refused.stderr
