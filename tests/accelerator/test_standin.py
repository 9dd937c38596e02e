"""The stand-in accelerator is as strict as CUDA: faults that are put in on purpose are found."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import torch
from support import small
from support.accelerator import KIND, Card, standin

from zoft.engine.offload import stream as streaming
from zoft.engine.probe import rows
from zoft.errors import EnvironmentProblem, OutOfMemory, ZoftError
from zoft.planning.memory.footprint import CUDA_CONTEXT
from zoft.runs.folder import RunFolder
from zoft.system import accelerator
from zoft.system.device import choose_device
from zoft.training.run import train

DEVICE = f"{KIND}:0"  # its name is known once a card is there
QUICK = [f"device={KIND}", "train.steps=2", "eval.every=0", "checkpoint.every=0"]
STREAMED = [*QUICK, "model.residency=host"]


@pytest.fixture
def card() -> Iterator[Card]:
    with standin() as made:
        yield made


def locked(size: int) -> torch.Tensor:
    memory = torch.arange(size).to(torch.uint8)
    assert accelerator.pin(memory, DEVICE)
    return memory


# -- one operator -----------------------------------------------------------------------------------


def test_tensors_of_two_devices_do_not_meet(card: Card) -> None:
    here, there = torch.ones(3, device=DEVICE), torch.ones(3)
    mixes: list[Callable[[], object]] = [
        lambda: here + there, lambda: there.add_(here), lambda: torch.cat([here, there]),
    ]  # fmt: skip
    for mixed in mixes:
        with pytest.raises(RuntimeError, match="Expected all tensors to be on the same device"):
            mixed()
    with pytest.raises(TypeError, match="convert"):
        here.numpy()
    assert (here + torch.tensor(2.0)).tolist() == [3.0] * 3  # a single number may
    assert len(card.synchronisations) == 1


def test_every_wait_of_the_host_is_counted(card: Card) -> None:
    there = torch.ones(3, device=DEVICE)
    assert not card.synchronisations
    waits: list[Callable[[], object]] = [
        lambda: there[0].item(), lambda: there.tolist(), lambda: bool(there.any()), there.cpu,
        lambda: torch.ones(2).to(DEVICE), lambda: there[there > 0], lambda: there[torch.tensor([1])],
        lambda: there.nonzero(), lambda: torch.tensor([1], device=DEVICE),
        lambda: accelerator.synchronize(DEVICE),
    ]  # fmt: skip
    for number, wait in enumerate(waits, 1):
        wait()
        assert len(card.synchronisations) == number, card.synchronisations[-2:]
    accelerator.send(torch.ones(3), DEVICE)
    assert torch.arange(3, device=DEVICE).view(1, 3).shape == (1, 3)
    assert len(card.synchronisations) == len(waits)
    assert not card.faults


def test_a_card_can_be_full(card: Card) -> None:
    held = torch.empty(2**20, device=DEVICE)
    assert card.used == 2**22
    view = held[5:]
    assert card.used == 2**22
    del held
    assert card.used == 2**22
    del view
    assert (card.used, card.peak) == (0, 2**22)
    assert accelerator.memory_bytes(DEVICE) == (card.size, card.size)
    with pytest.raises(torch.OutOfMemoryError, match=r"Tried to allocate 4096.00 MiB"):
        torch.empty(2**30, device=DEVICE)


@pytest.mark.parametrize("waits", [True, False])
def test_a_copy_comes_late_and_nothing_else_orders_it(card: Card, waits: bool) -> None:
    source, target = locked(999), torch.zeros(999, dtype=torch.uint8, device=DEVICE)
    copying = accelerator.new_stream(DEVICE)
    with accelerator.on_stream(copying, DEVICE):
        target.copy_(source, non_blocking=True)
    copied = accelerator.new_event(DEVICE)
    copied.record(copying)
    if waits:
        accelerator.current_stream(DEVICE).wait_event(copied)
    seen = target.clone()
    accelerator.synchronize(DEVICE)
    assert torch.equal(target.cpu(), source)
    if waits:
        assert torch.equal(seen.cpu(), source)
    assert bool(card.faults) != waits
    accelerator.unpin(source, DEVICE)


def test_a_copy_that_must_not_wait_needs_pinned_memory(card: Card) -> None:
    source = torch.ones(4)
    torch.empty(4, device=DEVICE).copy_(source, non_blocking=True)
    assert len(card.faults) == 1
    source.pin_memory().to(DEVICE, non_blocking=True)
    assert len(card.faults) == 1


@pytest.mark.usefixtures("card")
def test_auto_is_the_card_where_there_is_one() -> None:
    assert choose_device("auto") == choose_device(KIND) == f"{KIND}:0"
    with pytest.raises(EnvironmentProblem, match=f"torch sees 1 of {KIND}"):
        choose_device(f"{KIND}:1")


def test_without_a_card_there_is_none() -> None:
    assert choose_device("auto") == "cpu"


# -- faults in whole runs ---------------------------------------------------------------------------


@pytest.mark.usefixtures("card")
def test_a_tensor_that_was_left_on_the_host_is_found(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(rows, "send", lambda tensor, _device: tensor)
    with pytest.raises(ZoftError, match="Expected all tensors to be on the same device"):
        train(str(small.write(tmp_path)), QUICK)


def test_a_wait_that_was_left_out_is_found(
    card: Card, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(card.streams.Stream, "wait_event", lambda *_: None)
    with suppress(ZoftError):  # of NaN
        train(str(small.write(tmp_path)), STREAMED)
    assert "two streams use the same memory, and nothing orders them" in card.faults


def test_a_pin_that_was_forgotten_is_found(
    card: Card, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(streaming, "pin_all", lambda *_: True)
    train(str(small.write(tmp_path)), STREAMED)
    assert {fault.partition(" in ")[0] for fault in card.faults} == {
        "non-blocking copy of memory that is not pinned"
    }


# -- what zoft makes of it --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("method", "changes"),
    [
        ("full", ["data.labels={0: bad, 1: terrible}"]),
        ("lora", []),
    ],
)
def test_a_step_waits_for_the_card_once(method: str, changes: list[str], tmp_path: Path) -> None:
    """For its losses; beyond that at most once, where a model or a rule needs it."""
    counts = []
    for steps in (2, 5):
        folder = tmp_path / str(steps)
        folder.mkdir()
        with standin() as card:
            train(str(small.write(folder, method)), [*QUICK, f"train.steps={steps}", *changes])
            counts.append(len(card.synchronisations))
    assert 3 <= counts[1] - counts[0] <= 2 * 3


def test_a_full_card_is_explained(tmp_path: Path) -> None:
    """The plan was overruled by a budget that the card does not have."""
    with (
        standin(size=600_000),
        pytest.raises(OutOfMemory, match=r"^out of memory: .* asked for, 0\.00 GiB are free; "),
    ):
        train(str(small.write(tmp_path)), [*QUICK, "memory.device_budget=2GiB"])


def test_a_run_keeps_to_its_plan_and_its_budget(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Resident, and streamed within what is a little too small for that: no more is ever taken."""
    model: dict[str, Any] = {"num_hidden_layers": 6, "intermediate_size": 600}
    recipe = str(small.write(tmp_path, "full", **model))
    with standin():
        train(recipe, QUICK)
    run = RunFolder(tmp_path / "run").manifest()
    budget = run["planned_memory_bytes"] - 600_000
    with standin() as card:
        held = f"memory.device_budget={budget + CUDA_CONTEXT}"
        train(recipe, [*QUICK, held], output_dir=str(tmp_path / "streamed"))
        assert not card.faults
    assert "streamed from the host" in capsys.readouterr().out
    assert run["peak_memory_bytes"] <= run["planned_memory_bytes"]
    assert card.peak <= budget
    assert card.peak < run["peak_memory_bytes"]


def test_a_system_that_pins_nothing_is_slow_and_right(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with standin(pins=False) as card:
        train(str(small.write(tmp_path)), STREAMED)
    assert "copies to the GPU will wait for each other" in capsys.readouterr().out
    assert not [fault for fault in card.faults if "orders" in fault]
