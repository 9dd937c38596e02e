"""Whole runs as `zoft train` makes them: what they refuse, their slopes, their bytes, their result."""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import warnings
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM, PreTrainedModel

from support import tiny
from support.decoders.findings import Findings, Unsaid, Wrong
from support.decoders.probes import require_slopes
from support.decoders.reference import Reference, losses
from support.failures import killed_after
from zoft.data.examples import Example
from zoft.data.sets import load_data
from zoft.engine.build import order_for
from zoft.engine.probe.structures.table import directions_of
from zoft.errors import ZoftError
from zoft.models.adapters import attach_adapter
from zoft.planning.resolve import resolve
from zoft.recipe.load import load_recipe
from zoft.recipe.resolved import Resolved
from zoft.runs.journal import read
from zoft.training.run import train
from zoft.training.validate import validate

RECIPE = """\
model: {{name: {folder}/model, compute_dtype: float32, residency: device}}
device: cpu
output_dir: {folder}/run
data:
  train: {{path: {folder}/train.jsonl}}
  eval: {{path: {folder}/eval.jsonl}}
  template: "{{text}} It was"
  labels: {{0: terrible, 1: great}}
train: {{steps: 4, batch_size: 3}}
eval: {{every: 4}}
checkpoint: {{every: 2}}
"""
BFLOAT16 = ["model.compute_dtype=bfloat16", "train.steps=1", "~eval", "~checkpoint"]
DISK = ["model.residency=disk"]
BATCH = ["optimizer.scope=batch"]
PAIRED = ["optimizer.paired=true", "train.steps=1", "~eval", "~checkpoint"]
LORA = ["tune.method=lora"]
SCORE = 1e-4  # of a loss, relative


def write(folder: Path, model: PreTrainedModel) -> Path:
    """The model with a tokenizer, data and a recipe of four steps in `folder`."""
    model.save_pretrained(folder / "model")
    tiny.tokenizer().save_pretrained(folder / "model")
    for name, rows in (("train", 12), ("eval", 6)):
        with (folder / f"{name}.jsonl").open("w") as file:
            for i in range(rows):
                text = ("xyz" if i % 2 else "abc") * (1 + i % 3)
                file.write(json.dumps({"text": text, "label": i % 2}) + "\n")
    recipe = folder / "recipe.yaml"
    recipe.write_text(RECIPE.format(folder=folder))
    return recipe


def check(found: Findings, folder: Path, model: PreTrainedModel) -> None:
    """Full tuning and LoRA through the functions behind the command line."""
    with found.check("checkpoint"):
        recipe = write(folder, model)
    if not found.passed("checkpoint"):
        return
    if not _method(found, recipe, "full", []) and _advised(found, "full run", BATCH[0]):
        _method(found, recipe, "full batch", BATCH)
    with found.check("full run, paired=true"):
        _train(recipe, [*BATCH, *PAIRED], "full-paired")
        _first_step(recipe, [*BATCH, *PAIRED], recipe.parent / "full-paired")
    targets = LORA
    if not _method(found, recipe, "lora", LORA) and _advised(
        found, "lora run", "tune.target_modules"
    ):
        targets = [*LORA, "tune.target_modules=all-linear"]
        _method(found, recipe, "lora all-linear", targets)
    with found.check("lora run: bfloat16"):
        _train(recipe, [*targets, *BFLOAT16], "lora-bfloat16")


def _method(found: Findings, recipe: Path, name: str, changes: list[str]) -> bool:
    """A run of its own, one that is killed and resumed, one from the disk; the rest of their checks
    need the first. Returns whether it was made."""
    whole = f"{name} run"
    with found.check(whole):
        _train(recipe, changes, name)
    with found.check(f"{whole}: validate says the same"):
        _validated(recipe, changes, found, whole)
    if name == "full":
        with found.check(f"{whole}: bfloat16"):
            _train(recipe, BFLOAT16, "full-bfloat16")
    if not found.passed(whole):
        return False
    run = recipe.parent / name
    with found.check(f"{whole}: slopes of the first step"):
        _first_step(recipe, changes, run)
    with found.check(f"{whole}: resumed"):
        with killed_after(3):
            _train(recipe, changes, f"{name}-killed")
        _train(recipe, changes, f"{name}-killed", resume="auto")
        _same(run, recipe.parent / f"{name}-killed")
    disk = f"{whole}: disk"
    with found.check(disk):
        _train(recipe, [*changes, *DISK], f"{name}-disk")
        _same(run, recipe.parent / f"{name}-disk")
    with found.check(f"{disk}, validate says the same"):
        _validated(recipe, [*changes, *DISK], found, disk)
    with found.check(f"{whole}: final in plain transformers"):
        _final(recipe, changes, run)
    return True


def _advised(found: Findings, check: str, way_out: str) -> bool:
    """Whether the check ended in a refusal that names the way out."""
    return any(x.check == check and way_out in x.detail for x in found.of("refused"))


def _train(recipe: Path, changes: Sequence[str], name: str, resume: str = "none") -> None:
    with _silent(), _no_pictures():
        train(str(recipe), changes, output_dir=str(recipe.parent / name), resume=resume)


@contextlib.contextmanager
def _silent() -> Iterator[None]:
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        yield


@contextlib.contextmanager
def _no_pictures() -> Iterator[None]:
    """Leave out report.html and the loss curve: half of a tiny run's seconds."""
    with (
        mock.patch("zoft.training.run.reported", return_value=contextlib.nullcontext()),
        mock.patch("zoft.training.finish.write_loss_picture"),
    ):
        yield


def _validated(recipe: Path, changes: Sequence[str], found: Findings, run: str) -> None:
    """Raise `Unsaid` if `zoft validate` does not end as the run did."""
    ended = next(x for x in reversed(found.all) if x.check == run)
    try:
        with _silent():
            validate(str(recipe), changes)
        code, message = 0, ""
    except ZoftError as error:
        code, message = error.exit_code, str(error)
    if ended.status in ("ok", "refused") and code != ended.code:
        raise Unsaid(f"train ends with {ended.code}, validate with {code} {message}")


def _same(one: Path, other: Path) -> None:
    if _digest(one / "final") != _digest(other / "final"):
        raise Wrong("the final weights have other bytes")


def _digest(folder: Path) -> list[str]:
    files = sorted(folder.glob("*.safetensors"))
    return [hashlib.sha256(file.read_bytes()).hexdigest() for file in files]


def _settings(recipe: Path, changes: Sequence[str]) -> tuple[Resolved, dict[str, Any]]:
    resolved = resolve(load_recipe(str(recipe), changes))
    return resolved, load_data(resolved, tiny.tokenizer()).examples


def _plain(folder: Path) -> PreTrainedModel:
    model: Any = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    model.config.use_cache = False
    plain: PreTrainedModel = model.eval().requires_grad_(False)
    return plain


def _first_step(recipe: Path, changes: Sequence[str], run: Path) -> None:
    """The journal's slopes of step 1 beside those by hand."""
    resolved, sets = _settings(recipe, changes)
    _, entries = read(run / "journal.jsonl")
    examples: list[Example] = [sets["train"][i] for i in order_for(resolved, sets["train"]).rows(1)]
    expected = partial(_by_hand, recipe, resolved, examples)
    require_slopes(
        entries[0].measurement.projected_grad,
        expected(torch.float32),
        resolved.optimizer.perturbation,
        partial(expected, torch.float64),
    )


def _by_hand(
    recipe: Path, resolved: Resolved, examples: Sequence[Example], dtype: torch.dtype
) -> list[tuple[float, float]]:
    """The losses of step 1 at both ends of its direction, or of each example's own."""
    plain: Any = _plain(recipe.parent / "model")
    if resolved.tune.method != "full":
        plain = attach_adapter(plain, resolved.tune, resolved.seed)
    reference, settings = Reference(plain, resolved.tune), resolved.optimizer
    reference = reference.in_float64() if dtype == torch.float64 else reference
    directions, epsilon = directions_of(settings, resolved.seed), settings.perturbation
    if settings.scope == "example":
        zs = [directions.at(1, i) for i in range(len(examples))]
        plus, minus = (reference.alone(zs, scale, examples) for scale in (epsilon, -epsilon))
        return list(zip(plus, minus, strict=True))
    z = directions.at(1, 0)
    up, down = (reference.losses(z, scale, examples) for scale in (epsilon, -epsilon))
    return [(sum(up) / len(up), sum(down) / len(down))]


def _final(recipe: Path, changes: Sequence[str], run: Path) -> None:
    """The last score beside that of the result in plain transformers or peft."""
    resolved, sets = _settings(recipe, changes)
    events = map(json.loads, (run / "metrics.jsonl").read_text().splitlines())
    ours = [event["loss"] for event in events if event["event"] == "eval"][-1]
    model: Any
    if resolved.tune.method == "full":
        model = _plain(run / "final")
    else:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)  # peft 0.21 with transformers 5.23
            model = PeftModel.from_pretrained(_plain(recipe.parent / "model"), str(run / "final"))
    found = losses(model.eval(), sets["eval"])
    theirs = sum(found) / len(found)
    if not abs(ours - theirs) <= SCORE * max(abs(theirs), 0.1):
        raise Wrong(f"loss {ours:.6g}, of final/ in plain transformers {theirs:.6g}")
