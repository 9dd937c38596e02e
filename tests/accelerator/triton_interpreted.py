"""Run by `test_triton.py` with TRITON_INTERPRET=1: a run whose sweeps are the Triton kernels."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from support import small
from support.accelerator import KIND, standin

from zoft.engine.kernels.triton import sweeps as triton
from zoft.training.run import train

# The interpreter computes with numpy, which warns where IEEE says inf.
pytestmark = pytest.mark.filterwarnings("ignore::RuntimeWarning")

SHORT = ["train.batch_size=2", "eval.every=0", "checkpoint.every=0"]
SMALL: dict[str, Any] = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 1}


def steps(run: Path) -> list[list[float]]:
    """Of every step the losses and the slopes."""
    lines = map(json.loads, (run / "journal.jsonl").read_text().splitlines()[1:])
    return [[*x["loss_plus"], *x["loss_minus"], *x["projected_grad"]] for x in lines]


@pytest.mark.parametrize("structure", ["dense", "rank1"])
def test_a_run_on_triton_kernels(tmp_path: Path, structure: str) -> None:
    """To the bit along dense directions; `project` adds in an order of its own. One wait a step."""
    waits = []
    found = {}
    for name, count in (("cpu", 3), (KIND, 1), (KIND, 3)):
        folder = tmp_path / f"{name}-{count}"
        folder.mkdir()
        changes = [*SHORT, f"optimizer.structure={structure}", f"train.steps={count}"]
        with standin(kernels=triton) as card:
            train(str(small.write(folder, **SMALL)), [f"device={name}", *changes])
            assert card.faults == []
            waits.append(len(card.synchronisations))
        found[name] = steps(folder / "run")
    assert waits[0] == 0
    assert waits[2] - waits[1] <= 2 * 2
    if structure == "dense":
        assert found["cpu"] == found[KIND]
    for ours, theirs in zip(found["cpu"], found[KIND], strict=True):
        assert ours == pytest.approx(theirs, rel=1e-3)
