"""Every verb on the stand-in accelerator: the numbers are the CPU's, through the same kernels."""

from __future__ import annotations

import gc
import json
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path

import pytest
from support import small
from support.accelerator import KIND, Card, standin

from zoft.cli.main import main
from zoft.planning import step_time
from zoft.training.run import train

SHORT = ["train.steps=4", "eval.every=4", "checkpoint.every=2", "logging.every=2"]
SEVERAL = "data.labels={0: bad, 1: terrible}"  # tokens in an answer
DENSE = ["optimizer.structure=dense", "optimizer.sides=1", "train.micro_batch_size=2"]
VARIANTS: dict[str, tuple[str, list[str]]] = {
    "rank-1 per example": ("full", []),
    "rank-1 per batch": ("full", ["optimizer.scope=batch", "objective.name=lm"]),
    "dense": ("full", [*DENSE, "model.dtype=bfloat16", "model.compute_dtype=bfloat16"]),
    "lora": ("lora", [SEVERAL]),
    "solved head": ("full", ["tune.tail=head"]),
}
STREAMED: dict[str, tuple[str, list[str]]] = {  # on the card; the CPU has the whole model in memory
    "host": ("rank-1 per example", ["model.residency=host"]),
    "updated on the host": (
        "rank-1 per batch",
        ["model.residency=host", "offload.writeback=host"],
    ),
    "disk": ("dense", ["model.residency=disk"]),
    "frozen on the host": ("lora", ["model.residency=host"]),
}

Run = Callable[[str, str], Path]


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """Trains a variant on a device, once, and returns the run's folder, its recipe beside it."""

    @cache
    def made(variant: str, device: str) -> Path:
        whole, place = STREAMED.get(variant, (variant, []))
        method, changes = VARIANTS[whole]
        folder = tmp_path_factory.mktemp("run")
        train(str(small.write(folder, method)), [f"device={device}", *SHORT, *changes, *place])
        return folder / "run"

    return made


@pytest.fixture
def card() -> Iterator[Card]:
    with standin() as made:
        yield made


def measured(run: Path) -> list[str]:
    """The journal's entries without what chains them to this run's paths."""
    lines = (run / "journal.jsonl").read_text().splitlines()[1:]
    return [line.partition(',"crc32"')[0] for line in lines]


def weights(folder: Path) -> dict[str, bytes]:
    return {str(f.relative_to(folder)): f.read_bytes() for f in folder.rglob("*.safetensors")}


@pytest.mark.parametrize("variant", [*VARIANTS, *STREAMED])
def test_a_run_ends_with_the_bytes_of_the_cpu(trained: Run, variant: str) -> None:
    with standin() as card:
        here = trained(variant, KIND)
        assert card.faults == []
    there = trained(STREAMED.get(variant, (variant, []))[0], "cpu")
    assert len(measured(here)) == 4
    assert measured(here) == measured(there)
    assert weights(here / "final") == weights(there / "final")
    gc.collect()
    assert card.used == 0  # nothing of the run holds memory of the card


def test_gradients_of_the_last_block(tmp_path: Path) -> None:
    """Attention that is differentiated takes another way on a GPU: equal but for rounding."""
    changes = [*SHORT, "tune.tail=blocks:1"]
    losses = []
    for device in ("cpu", KIND):
        folder = tmp_path / device
        folder.mkdir()
        with standin() as card:
            train(str(small.write(folder)), [f"device={device}", *changes])
            assert card.faults == []
        entries = (json.loads(line + "}") for line in measured(folder / "run"))
        losses.append([loss for entry in entries for loss in entry["loss_plus"]])
    assert losses[0] == pytest.approx(losses[1], rel=1e-3)


def test_a_resumed_run_ends_as_a_whole_one(trained: Run, tmp_path: Path, card: Card) -> None:
    recipe = small.write(tmp_path)
    on_card = [f"device={KIND}", *SHORT]
    train(str(recipe), [*on_card, "train.steps=3"])
    train(str(recipe), on_card, resume="auto")
    assert measured(tmp_path / "run") == measured(trained("rank-1 per example", "cpu"))
    assert card.faults == []


@pytest.mark.parametrize(("variant", "residency"), [("lora", "device"), ("solved head", "host")])
def test_a_run_is_scored_as_on_the_cpu(
    trained: Run, variant: str, residency: str, capsys: pytest.CaptureFixture[str]
) -> None:
    said = {}
    for device in ("cpu", KIND):
        with standin() as card:
            run = trained(variant, "cpu")
            recipe = str(run.parent / "recipe.yaml")
            capsys.readouterr()
            place = [f"device={device}"]
            place += [f"model.residency={residency}"] if device == KIND else []
            assert main(["eval", str(run), recipe, *place]) == 0
            said[device] = [x for x in capsys.readouterr().out.splitlines() if "accuracy" in x]
            assert said[device]
            assert (card.operators > 0) == (device == KIND)
            assert card.faults == []
    assert said["cpu"] == said[KIND]


@pytest.mark.parametrize("temperature", ["0", "0.7"])
def test_what_is_written_is_what_the_cpu_writes(
    trained: Run, temperature: str, capsys: pytest.CaptureFixture[str]
) -> None:
    said = {}
    for device in ("cpu", KIND):
        with standin() as card:
            run = trained("lora", device)
            capsys.readouterr()
            asked = ["--prompt", "abc It was", "--max-new-tokens", "8"]
            assert main(["generate", str(run), *asked, "--temperature", temperature]) == 0
            said[device] = capsys.readouterr().out
            assert card.faults == []
    assert said["cpu"].strip()
    assert said["cpu"] == said[KIND]


def test_a_run_is_replayed_on_the_card(trained: Run, tmp_path: Path, card: Card) -> None:
    """A journal of the CPU, to the same bytes."""
    run = trained("rank-1 per example", "cpu")
    before = card.operators
    assert main(["replay", str(run), "--out", str(tmp_path / "again")]) == 0
    assert card.operators > before
    assert card.faults == []
    again = {name.split("/")[-1]: x for name, x in weights(tmp_path / "again").items()}
    assert again["model.safetensors"] == weights(run / "final")["model.safetensors"]


@pytest.mark.parametrize(
    ("verb", "residency"), [("plan", "host"), ("range", "device"), ("validate", "device")]
)
def test_what_looks_ahead_runs_on_the_card(
    tmp_path: Path,
    card: Card,
    verb: str,
    residency: str,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(step_time, "PROBED", 2**20)
    monkeypatch.setattr(step_time, "WORK_OF_A_CARD", 1e7)
    recipe = small.write(tmp_path)
    assert main([verb, str(recipe), f"device={KIND}", f"model.residency={residency}"]) == 0
    out = capsys.readouterr().out
    assert KIND in out or verb == "range"
    assert "not here" not in out
    assert card.operators > 0
    assert card.faults == []


@pytest.mark.usefixtures("card")
def test_the_doctor_names_the_card(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["doctor"]) == 0
    assert f"gpu       {KIND}:0 {KIND} card, 2.00 GiB of 2.00 GiB free" in capsys.readouterr().out
