"""`zoft doctor --gpu`: a verdict that any fault turns; here the CPU stands for a card."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from zoft.cli.main import main
from zoft.engine.kernels.cpu import sweeps
from zoft.engine.kernels.dispatch import Kernels
from zoft.engine.offload.streamer import Streamer
from zoft.planning.doctor import gpu as doctor
from zoft.planning.doctor import speed
from zoft.planning.doctor.parity import Inputs, parity
from zoft.planning.doctor.toy_step import steps_agree

CPU = torch.device("cpu")
NAMES = [name for name in vars(Kernels) if not name.startswith("_")]


def kernels(**changed: Any) -> Any:
    """The CPU's, some of them changed."""
    return SimpleNamespace(**{name: getattr(sweeps, name) for name in NAMES} | changed)


@pytest.fixture
def card(monkeypatch: pytest.MonkeyPatch) -> None:
    """The CPU as a card."""
    monkeypatch.setattr(doctor, "card", lambda: CPU)
    monkeypatch.setattr(doctor, "kernels_on", lambda _: kernels())


def verdict(capsys: pytest.CaptureFixture[str]) -> str:
    return capsys.readouterr().out.splitlines()[-1]


def test_without_a_gpu_one_line_says_so(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    assert main(["doctor", "--gpu"]) == 4
    said = capsys.readouterr()
    assert said.out == ""
    assert said.err.startswith("error: doctor --gpu: torch sees no GPU")
    assert said.err.count("\n") == 1


@pytest.mark.parametrize("arguments", [["--gpu", "some/model"], ["--json", "a.json"]])
def test_what_does_not_go_together_is_refused(arguments: list[str]) -> None:
    assert main(["doctor", *arguments]) == 2


@pytest.mark.usefixtures("card")
def test_a_card_without_faults_is_trusted(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "found.json"
    assert main(["doctor", "--gpu", "--json", str(file)]) == 0
    lines = capsys.readouterr().out.splitlines()
    names = "seed card versions kernels copy upload product step verdict"
    assert [line.split()[0] for line in lines] == names.split()
    assert lines[-1].startswith("verdict   to be trusted")
    found = json.loads(file.read_text())
    assert found["trusted"]
    assert found["wrong"] == []
    assert all(found["found"]["parity"].values())
    assert found["found"]["copy_bytes_per_second"] > 0


@pytest.mark.usefixtures("card")
def test_one_wrong_bit_of_a_kernel_is_named(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def off(out: Tensor, *inputs: Tensor, **options: Any) -> None:
        sweeps.perturb(out, *inputs, **options)
        out.view(torch.int16)[3] ^= 1

    monkeypatch.setattr(doctor, "kernels_on", lambda _: kernels(perturb=off))
    assert main(["doctor", "--gpu"]) == 1
    said = verdict(capsys)
    assert "NOT to be trusted" in said
    assert "kernel perturb, perturb_pair bfloat16" in said
    assert "update" not in said


@pytest.mark.usefixtures("card")
def test_what_fails_is_named_and_hides_nothing_else(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def broken(_: torch.device) -> float:
        raise RuntimeError("no cuBLAS\nand more")

    monkeypatch.setattr(speed, "product_rate", broken)
    monkeypatch.setattr(doctor, "steps_agree", lambda *_: False)
    assert main(["doctor", "--gpu"]) == 1
    out = capsys.readouterr().out
    assert "product   fails: RuntimeError: no cuBLAS\n" in out
    assert "DIFFERENT bytes\n" in out
    assert "verdict   NOT to be trusted: product, step (" in out


def test_every_kernel_is_compared() -> None:
    called = set()

    def watched(name: str) -> Any:
        def call(*inputs: Any, **options: Any) -> None:
            called.add(name)
            getattr(sweeps, name)(*inputs, **options)

        return call

    watching = kernels(**{name: watched(name) for name in NAMES})
    found = dict(parity(watching, CPU, Inputs.tiny(2**32 - 7)))
    assert called == set(NAMES)
    assert all(found.values()), found


def test_an_update_that_never_reaches_a_streamed_block_is_seen(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert steps_agree(CPU, 5)
    monkeypatch.setattr(Streamer, "enqueue_update", lambda *_: None)
    assert not steps_agree(CPU, 5)
