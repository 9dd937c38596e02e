"""`zoft doctor`: a line for everything, whatever is broken, and never a token."""

from __future__ import annotations

import subprocess
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace

import huggingface_hub
import pytest
import torch

from zoft.cli.main import main
from zoft.planning.doctor import machine as doctor
from zoft.system import accelerator


@pytest.fixture(autouse=True)
def logged_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(huggingface_hub, "get_token", lambda: None)


def test_it_names_everything(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_ENDPOINT", "https://user:geheim@hub.example")
    assert main(["doctor"]) == 0
    out = capsys.readouterr().out
    report, pasted = out.split("\nTo paste into a report:\n")
    names = {line.split()[0] for line in report.splitlines() if line[:1] != " "}
    assert names == {
        "python", "zoft", "torch", "gpu", "driver", "triton", "extras", "memory", "disk", "caches",
        "hub", "settings",
    }  # fmt: skip
    assert "cannot be found out" not in report
    assert "not logged in" in report
    assert "HF_ENDPOINT=https://hub.example" in report
    assert "geheim" not in out
    assert f"    torch {torch.__version__}" in pasted


def test_one_broken_probe_breaks_no_other(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken() -> bool:
        raise RuntimeError("driver too old\nand more")

    monkeypatch.setattr(accelerator, "first", broken)
    monkeypatch.setattr(doctor, "find_spec", lambda _: None)
    doctor.doctor()
    out = capsys.readouterr().out
    assert "gpu       cannot be found out: RuntimeError: driver too old\n" in out
    assert "triton    not installed" in out
    assert "settings  " in out


def test_a_driver_is_asked_for_its_version(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    tool = tmp_path / "nvidia-smi"
    tool.write_text("#!/bin/sh\necho NVIDIA H200, 570.10\n")
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    monkeypatch.setattr(torch.version, "cuda", None)
    found, advice = doctor.driver()
    assert found == "NVIDIA H200, 570.10"
    assert "built without CUDA" in advice
    tool.write_text("#!/bin/sh\necho no devices; exit 9\n")
    assert doctor.driver() == ["nvidia-smi fails: no devices"]
    tool.write_text("#!/bin/sh\nexec sleep 60\n")
    monkeypatch.setattr(doctor, "SECONDS", 0.1)
    with pytest.raises(subprocess.TimeoutExpired):
        doctor.driver()


def test_the_login_is_asked_for_and_the_token_never_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(huggingface_hub, "get_token", lambda: "hf_geheim")
    monkeypatch.setattr(huggingface_hub, "whoami", lambda token: {"name": f"jo-{len(token)}"})
    (line,) = doctor._hub()
    assert line.endswith("as jo-9")

    def refuse(token: str) -> None:
        raise OSError(f"bad token {token}")

    monkeypatch.setattr(huggingface_hub, "whoami", refuse)
    (line,) = doctor._hub()
    assert line.endswith("bad token ...")


def test_a_hub_that_hangs_is_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    import threading

    gone = threading.Event()
    monkeypatch.setattr(huggingface_hub, "get_token", lambda: "hf_geheim")
    monkeypatch.setattr(huggingface_hub, "whoami", lambda _: gone.wait(5))
    monkeypatch.setattr(doctor, "SECONDS", 0.05)
    assert doctor._hub() == ["a token is there, but the Hub did not answer in time"]
    gone.set()


def test_sizes_count_each_file_once(tmp_path: Path) -> None:
    (tmp_path / "blob").write_bytes(b"x" * 2**20 * 11)
    (tmp_path / "snapshot").hardlink_to(tmp_path / "blob")
    assert doctor._size(tmp_path) == "0.01 GiB"
    assert doctor._size(tmp_path / "nowhere") == "0.00 GiB"


def test_gpus_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    card = SimpleNamespace(name="NVIDIA H200", major=9, minor=0)
    for name, answer in {
        "is_available": True,
        "device_count": 1,
        "device": nullcontext(),
        "get_device_properties": card,
        "mem_get_info": (2**35, 2**37),
        "is_bf16_supported": True,
    }.items():
        monkeypatch.setattr(torch.cuda, name, lambda *_, answer=answer, **__: answer)
    monkeypatch.setattr(accelerator, "first", lambda: "cuda:0")
    assert doctor._gpu() == [
        "cuda:0 NVIDIA H200, compute capability 9.0, 32.00 GiB of 128.00 GiB free, computes in "
        "bfloat16"
    ]
