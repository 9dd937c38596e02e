"""One architecture from its config to its result, in a process of its own."""

from __future__ import annotations

import json
import os
import tempfile
import time
from dataclasses import asdict
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel

from support.decoders import probes, runs
from support.decoders.findings import Findings
from support.decoders.models import build
from support.decoders.probes import Subject
from support.decoders.reference import Reference
from zoft.errors import ZoftError
from zoft.models.adapters import attach_adapter, of_adapter
from zoft.recipe.sections.tune import TuneSection

SECONDS = 180  # the longest that an architecture may take
Result = dict[str, Any]  # architecture, model, seconds, findings


def examined(name: str, out: Path, *, again: bool = False) -> Result:
    """What was found about an architecture: read from `out`, else found in a process of its own."""
    file = out / f"{name}.json"
    if again or not file.exists():
        file.unlink(missing_ok=True)
        out.mkdir(parents=True, exist_ok=True)
        ended = _apart(name, file)
        if not file.exists():
            lost = {"check": "process", "status": "crash", "detail": ended, "code": 1}
            _write(
                file, {"architecture": name, "model": "", "seconds": SECONDS, "findings": [lost]}
            )
    result: Result = json.loads(file.read_text())
    return result


def _apart(name: str, file: Path) -> str:
    """Examine in a child of a server that has imported everything; returns how the child ended."""
    context = get_context("forkserver")
    # The server starts from the environment: what only this process' sys.path has must be in there.
    roots = [str(Path(__file__).parents[2]), str(Path(__file__).parents[3])]
    os.environ["PYTHONPATH"] = os.pathsep.join([*roots, os.environ.get("PYTHONPATH", "")])
    context.set_forkserver_preload([__name__])
    child = context.Process(target=_child, args=(name, file))
    child.start()
    child.join(SECONDS)
    if child.is_alive():
        child.kill()
        child.join()
        return f"no result within {SECONDS} s"
    return f"the process ended with {child.exitcode}"


def _child(name: str, file: Path) -> None:
    with (file.parent / f"{name}.log").open("w") as log:  # what libraries say stays out of the way
        os.dup2(log.fileno(), 1)
        os.dup2(log.fileno(), 2)
        _write(file, examine(name))


def _write(file: Path, result: Result) -> None:
    part = file.with_suffix(".part")
    part.write_text(json.dumps(result, indent=1))
    part.replace(file)


def examine(name: str) -> Result:
    """Build the model, make its runs, and compare its probes if it can be loaded."""
    begun, found, kind = time.monotonic(), Findings(), ""
    torch.set_num_threads(1)
    with found.check("build"):
        try:
            model = build(name)
            kind = type(model).__name__
            model(input_ids=torch.tensor([[3, 4, 5]]), use_cache=False)
        except Exception as error:
            raise NotBuilt(f"{type(error).__name__}: {error}") from error
    if found.passed("build"):
        with tempfile.TemporaryDirectory() as folder:
            runs.check(found, Path(folder), model)
            check_probes(found, Path(folder) / "model", name)
    seconds = round(time.monotonic() - begun, 1)
    findings = [asdict(finding) for finding in found.all]
    return {"architecture": name, "model": kind, "seconds": seconds, "findings": findings}


class NotBuilt(ZoftError):
    """A model that transformers itself does not build, or run, from a shrunk config."""


def check_probes(found: Findings, folder: Path, name: str) -> None:
    """Full tuning, then LoRA. `folder` holds the checkpoint of `build(name)`."""
    if check_full(found, folder, name):
        check_lora(found, folder, name)


def check_full(found: Findings, folder: Path, name: str) -> bool:
    """All weights tuned; whether the checkpoint could be loaded."""
    with found.check("load"):
        full = Subject.loaded(folder, build(name))
    if found.passed("load"):
        probes.check(found, "full", full)
    return found.passed("load")


def check_lora(found: Findings, folder: Path, name: str) -> None:
    """Matrices that are not zero, on every linear module where `auto` has no answer."""
    for targets in ("auto", "all-linear"):
        tune = TuneSection.model_validate({"method": "lora", "target_modules": targets})
        both: Any = (Subject.loaded(folder, build(name)).model, build(name))
        try:
            model, plain = (_trained(attach_adapter(x, tune, seed=0)) for x in both)
        except Exception:  # the run has said it
            continue
        probes.check(found, "lora", Subject(model, tune, Reference(plain, tune)))
        return


def _trained(adapted: PeftModel) -> PeftModel:
    generator = torch.Generator().manual_seed(1)
    for name, parameter in adapted.named_parameters():
        if (of_adapter(name) and "lora_B" in name) or "lora_embedding_B" in name:
            parameter.data = 0.1 * torch.randn(parameter.shape, generator=generator)
    return adapted
