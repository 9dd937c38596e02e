"""`zoft doctor --gpu`: whether zoft may be trusted on the card of this machine, in under a minute.

Every check is done on its own: one that fails is named in its line, and in the verdict.
"""

from __future__ import annotations

import json
import os
import secrets
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from functools import partial
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch

from zoft import __version__
from zoft.errors import EnvironmentProblem, first_line
from zoft.planning.doctor import speed
from zoft.planning.doctor.machine import driver
from zoft.planning.doctor.parity import Inputs, kernels_on, parity
from zoft.planning.doctor.toy_step import STEPS, steps_agree
from zoft.system.atomic_io import write_atomically
from zoft.system.device import fast_dtype, make_repeatable
from zoft.system.host_memory import gib

REHEARSAL = "TRITON_INTERPRET"  # =1: Triton's interpreter runs the kernels, on the CPU


@dataclass
class Report:
    """What was found: `wrong` names the checks that failed, the rest are figures for `--json`."""

    seed: int
    device: str
    found: dict[str, Any] = field(default_factory=dict)
    wrong: list[str] = field(default_factory=list)
    seconds: float = 0.0

    def line(self, name: str, text: str) -> None:
        print(f"{name:9} {text}", flush=True)

    def check(self, name: str, measure: Callable[[], tuple[str, dict[str, Any]]]) -> None:
        """Print what `measure` says of the card and keep its figures; what it raises is a failure."""
        try:
            text, figures = measure()
        except Exception as error:  # of a driver, a compiler or a library: any class
            text = f"fails: {type(error).__name__}: {first_line(error)}"
            figures = {}
            self.wrong.append(name)
        self.found |= figures
        self.line(name, text)


def doctor(json_file: Path | None = None, seed: int | None = None) -> bool:
    """Print what is found and whether the card is to be trusted; the answer also goes to `json_file`.

    Raises EnvironmentProblem where there is no GPU.
    """
    begun, device = time.monotonic(), card()
    make_repeatable(device)  # before the first product
    report = Report(secrets.randbits(32) if seed is None else seed, str(device))
    report.line("seed", str(report.seed))
    report.check("card", partial(_card, device))
    report.check("versions", _versions)
    report.check("kernels", partial(_kernels, report, device))
    report.check("copy", lambda: _rate("copy", speed.copy_rate(device), "GB/s read and written"))
    report.check("upload", lambda: _rate("upload", speed.upload_rate(device), "GB/s from the host"))
    report.check("product", partial(_product, device))
    report.check("step", partial(_step, report, device))
    report.seconds = round(time.monotonic() - begun, 1)
    trusted = not report.wrong
    where = "on this card" if device.type != "cpu" else "in a rehearsal on the CPU, without a card"
    said = f"to be trusted {where}" if trusted else f"NOT to be trusted: {', '.join(report.wrong)}"
    report.line("verdict", f"{said} ({report.seconds:g} s)")
    if json_file is not None:
        text = json.dumps({"trusted": trusted, **asdict(report)}, indent=2)
        write_atomically(json_file, f"{text}\n")
    return trusted


def card() -> torch.device:
    """The GPU that torch sees; the CPU where Triton's interpreter is asked for. Raises
    EnvironmentProblem where there is neither."""
    found = torch.accelerator.current_accelerator(check_available=True)
    if found is not None:
        return torch.device(found.type, 0)
    if os.environ.get(REHEARSAL) == "1":
        return torch.device("cpu")
    raise EnvironmentProblem("doctor --gpu: torch sees no GPU; `zoft doctor` says what is here")


def _card(device: torch.device) -> tuple[str, dict[str, Any]]:
    if device.type == "cpu":
        return "none: the kernels run in Triton's interpreter", {"card": "CPU", "driver": None}
    module = torch.get_device_module(device)
    name, size = module.get_device_name(device), module.mem_get_info(device)[1]
    said, capability = driver()[0], str(module.get_device_capability(device))
    figures = {"card": name, "capability": capability, "memory_bytes": size, "driver": said}
    return f"{name}, capability {capability}, {gib(size)}; driver: {said}", figures


def _versions() -> tuple[str, dict[str, Any]]:
    triton = version("triton") if find_spec("triton") else None
    figures = {
        "zoft": __version__, "torch": torch.__version__, "triton": triton,
        "CUDA or HIP": torch.version.cuda or torch.version.hip,
    }  # fmt: skip
    return ", ".join(f"{name} {said or '-'}" for name, said in figures.items()), figures


def _kernels(report: Report, device: torch.device) -> tuple[str, dict[str, Any]]:
    kernels = kernels_on(device)
    inputs = Inputs(report.seed) if device.type != "cpu" else Inputs.tiny(report.seed)
    found = dict(parity(kernels, device, inputs))
    wrong = [name for name, same in found.items() if not same]
    report.wrong += [f"kernel {name}" for name in wrong]
    name = getattr(kernels, "__name__", "").rpartition("kernels.")[2]
    text = f"{len(found) - len(wrong)} of {len(found)} comparisons of {name} equal the reference"
    return text + "".join(f"; differs: {x}" for x in wrong), {"parity": found}


def _rate(name: str, rate: float, unit: str) -> tuple[str, dict[str, Any]]:
    return f"{rate / 1e9:,.1f} {unit}", {f"{name}_bytes_per_second": rate}


def _product(device: torch.device) -> tuple[str, dict[str, Any]]:
    rate, dtype = speed.product_rate(device), fast_dtype(str(device))
    return f"{rate / 1e12:,.2f} TFLOP/s in {dtype}", {"product_flops": rate, "product_dtype": dtype}


def _step(report: Report, device: torch.device) -> tuple[str, dict[str, Any]]:
    same = steps_agree(device, report.seed)
    if not same:
        report.wrong.append("step")
    text = f"{STEPS} steps of a toy model, resident and streamed from the host: "
    return text + ("equal bytes" if same else "DIFFERENT bytes"), {"steps_agree": same}
