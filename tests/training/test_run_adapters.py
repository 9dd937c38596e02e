"""Whole runs of every kind of tuning: streamed, killed and resumed, quantised, read by peft alone."""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import cache
from pathlib import Path

import pytest
import torch
from peft import AutoPeftModelForCausalLM
from support import small
from support.failures import killed_after
from transformers import AutoModelForCausalLM

from zoft.inference.evaluate import evaluate
from zoft.models.adapters import load_adapter
from zoft.training.run import train

KINDS = {
    "ia3": ("ia3", []),
    "prefix": ("prefix", ["optimizer.lr=1e-1"]),
    "prompt": ("prompt", ["tune.virtual_tokens=3"]),
    "some blocks, all linear": ("lora", ["tune.layers=[1,1]", "tune.target_modules=all-linear"]),
    "norms": ("full", ["tune.only=norm", "tune.layers=[1,2]"]),
}
ADAPTERS = [kind for kind in KINDS if kind != "norms"]
SHORT = ["train.steps=6", "checkpoint.every=2", "eval.every=6"]
WIDTHS = {"hidden_size": 64, "intermediate_size": 128, "head_dim": 16}  # which nf4 asks for


Finished = tuple[Path, list[str], Path]  # a recipe, its changes, the folder of its whole run


def written(folder: Path) -> dict[str, bytes]:
    weights = [*folder.glob("checkpoint-*/*.safetensors"), *folder.glob("final/*.safetensors")]
    assert len(weights) >= 3
    files = {str(file.relative_to(folder)): file.read_bytes() for file in weights}
    return {**files, "journal": (folder / "journal.jsonl").read_bytes().split(b"\n", 1)[1]}


def last_score(folder: Path) -> float:
    lines = map(json.loads, (folder / "metrics.jsonl").read_text().splitlines())
    *_, last = (event["loss"] for event in lines if event["event"] == "eval")
    return float(last)


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Finished]:
    """Of a kind, a recipe, its changes, and the folder of its uninterrupted run."""

    @cache
    def made(kind: str) -> Finished:
        method, changes = KINDS[kind]
        folder = tmp_path_factory.mktemp("run")
        recipe = small.write(folder, method, num_hidden_layers=3)
        train(str(recipe), [*changes, *SHORT])
        return recipe, [*changes, *SHORT], folder / "run"

    return made


@pytest.mark.parametrize("kind", KINDS)
def test_a_streamed_run_killed_and_resumed_ends_in_the_same_bytes(
    finished: Callable[[str], Finished], kind: str, tmp_path: Path
) -> None:
    recipe, changes, expected = finished(kind)
    changes = [*changes, "model.residency=disk"]
    with killed_after(3):
        train(str(recipe), changes, output_dir=str(tmp_path / "run"))
    train(str(recipe), changes, output_dir=str(tmp_path / "run"), resume="auto")
    assert written(tmp_path / "run") == written(expected)


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")  # of peft alone
@pytest.mark.parametrize("kind", ADAPTERS)
def test_an_adapter_is_pefts_own_and_scores_as_the_run_said(
    finished: Callable[[str], Finished], kind: str
) -> None:
    recipe, changes, folder = finished(kind)
    theirs = AutoPeftModelForCausalLM.from_pretrained(folder / "final")
    base = AutoModelForCausalLM.from_pretrained(folder.parent / "model")
    ours = load_adapter(base, folder / "final")
    ids = torch.tensor([[0, 40, 50, 60, 70]])
    with torch.no_grad():
        assert torch.equal(theirs(ids).logits, ours(ids).logits)
    scores = evaluate(str(folder / "final"), str(recipe), changes)
    assert scores["eval"]["loss"] == pytest.approx(last_score(folder), abs=1e-6)


@pytest.mark.parametrize(
    ("kind", "codes"), [("ia3", "int8"), ("ia3", "nf4"), ("prefix", "nf4"), ("prompt", "int8")]
)
def test_a_quantised_base_learns_as_well(kind: str, codes: str, tmp_path: Path) -> None:
    method, changes = KINDS[kind]
    recipe = small.write(tmp_path, method, **WIDTHS)
    few = ["train.steps=2", "checkpoint.every=0", "eval.every=0", f"model.quantization={codes}"]
    train(str(recipe), [*changes, *few])
    train(str(recipe), [*changes, *few, "model.residency=disk"], output_dir=str(tmp_path / "disk"))
    weights = "final/adapter_model.safetensors"
    assert (tmp_path / "run" / weights).read_bytes() == (tmp_path / "disk" / weights).read_bytes()
