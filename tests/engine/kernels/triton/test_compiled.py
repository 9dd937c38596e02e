"""Every Triton kernel, compiled ahead of time for two architectures with no GPU in the machine.

`ptx_table.json` says what is expected: registers, no spills, and instructions per element as
`triton_aot.py` counts them. To write it anew after a change that is meant (it needs the versions of
constraints.txt):

    ZOFT_WRITE_GOLDEN=1 bash scripts/test.sh tests/engine/kernels/triton/test_compiled.py
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from support import ROOT

TABLE = Path(__file__).with_name("ptx_table.json")
KEPT = ("registers", "spills", "loop", "once")
REGISTERS = 8  # that ptxas may need more or less
INSTRUCTIONS = 0.1  # of their number
UPDATES = ("add_directions", "radazo", "zo_adamm")


def ask(cache: Path, *arguments: str) -> Any:
    """The answer of triton_aot.py; a cache of its own, so that nothing older is read."""
    environment = {**os.environ, "TRITON_CACHE_DIR": str(cache)}
    environment.pop("TRITON_INTERPRET", None)
    done = subprocess.run(
        [sys.executable, str(Path(__file__).with_name("triton_aot.py")), *arguments],
        env={**environment, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Any]]:
    """What this Triton makes of the kernels."""
    rows: dict[str, dict[str, Any]] = ask(tmp_path_factory.mktemp("triton"))
    if os.environ.get("ZOFT_WRITE_GOLDEN"):
        kept = {name: {key: row[key] for key in KEPT} for name, row in rows.items()}
        lines = ",\n".join(f"  {json.dumps(name)}: {json.dumps(row)}" for name, row in kept.items())
        TABLE.write_text(f"{{\n{lines}\n}}\n", encoding="utf-8")
    return rows


def test_every_kernel_costs_what_the_table_says(found: dict[str, dict[str, Any]]) -> None:
    expected = json.loads(TABLE.read_text(encoding="utf-8"))
    assert found.keys() == expected.keys()
    for name, row in found.items():
        golden = expected[name]
        assert row["spills"] == golden["spills"] == 0, name
        assert row["registers"] == pytest.approx(golden["registers"], abs=REGISTERS), name
        for key in ("loop", "once"):
            assert row[key] == pytest.approx(golden[key], rel=INSTRUCTIONS, abs=0.05), (name, key)


def test_updates_round_as_ieee_says_and_race_with_nobody(found: dict[str, dict[str, Any]]) -> None:
    for name, row in found.items():
        if name.startswith(UPDATES):
            assert row["inexact"] == [], name


def test_nothing_is_fused_that_would_round_once_too_few(found: dict[str, dict[str, Any]]) -> None:
    for name, row in found.items():
        if "rank-1" in name:  # on purpose, where products are integers: once per sum in registers
            assert row["fma"] in (32, 64), name
        else:
            assert row["fma"] == 0, name


def test_no_lane_waits_for_another(found: dict[str, dict[str, Any]]) -> None:
    """Sweeps draw what they use. Only sums over a vector's columns cross lanes."""
    for name, row in found.items():
        if not name.startswith(("project", "spread", "widen", "prefill")):
            assert row["barriers"] == row["shared"] == 0, name


def test_a_step_compiles_nothing_anew(tmp_path: Path) -> None:
    variants = ask(tmp_path, "--variants")
    # Two of dense_kernel: it served float32 sums and a float16 window.
    expected = {"perturb_kernel": 1, "signs_kernel": 1, "factors_kernel": 1, "rank1_kernel": 1}
    assert variants == {**expected, "dense_kernel": 2}
