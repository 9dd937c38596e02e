"""What threads hand to streams: the order of a plan holds on the device. On a model of CUDA."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from random import Random
from typing import Any

import pytest
import torch
from support.offload.clocks import Item, Look, Wait
from support.offload.fake_cuda import Clock, Cuda, join
from support.offload.interleaving import Machine, plainly
from support.offload.programs import Driver, Writeback, program, trace
from support.offload.streamed import rig

from zoft.engine.offload import executor as executor_module
from zoft.engine.offload.executor import Executor, Work
from zoft.engine.offload.operations import Event, Op, Queue
from zoft.engine.offload.schedule import Schedule, Transfer
from zoft.engine.offload.streams import Streams

TRANSFERS: list[tuple[Transfer, Writeback]] = [
    (transfer, writeback)
    for transfer in ("memory", "staged")
    for writeback in (None, "device", "host")
]
EVERY_TRANSFER = pytest.mark.parametrize(
    "transfer", TRANSFERS, ids=lambda transfer: f"{transfer[0]}-{transfer[1]}"
)
GPU = torch.device("cuda")


class Watched(Executor):
    """Tells the model what its threads learn of each other."""

    cuda: Cuda

    def __init__(self, device: Streams, cuda: Cuda) -> None:
        super().__init__(device)
        self.cuda, self._known = cuda, dict[Event, Clock]()

    def submit(self, op: Op, work: Work) -> None:
        said = dict(self.cuda.thread())

        def handed_over() -> object:
            self._learn(said)
            return work()

        super().submit(op, handed_over)

    def _await(self, events: Sequence[Event]) -> None:
        super()._await(events)
        for event in events:
            self._learn(self._known.get(event, {}))

    def _learn(self, clock: Clock) -> None:
        join(self.cuda.thread(), clock)

    def _do(self, op: Op, work: Work) -> None:
        super()._do(op, work)
        if op.records is not None:
            self._known[op.records] = dict(self.cuda.thread())


@pytest.fixture
def cuda(monkeypatch: pytest.MonkeyPatch) -> Iterator[Cuda]:
    made = Cuda(Random(0))
    for name in made.names:
        monkeypatch.setattr(torch.cuda, name, getattr(made, name))
    yield made
    made.close()


def play(cuda: Cuda, made: Executor, machine: Machine, items: Sequence[Item]) -> None:

    def launch(op: Op) -> None:
        cuda.launch(op, machine.work(op))

    for item in items:
        match item:
            case Op():
                made.submit(item, partial(launch, item))
            case Wait(event):
                made.wait(event)
            case Look(buffer):
                machine.look(buffer)


@pytest.mark.parametrize("marks", [1, 2, 64])
@EVERY_TRANSFER
def test_conflicting_accesses_are_ordered_and_the_bytes_right(
    cuda: Cuda, monkeypatch: pytest.MonkeyPatch, transfer: tuple[Transfer, Writeback], marks: int
) -> None:
    """Also where marks are forgotten long before somebody waits for them."""
    monkeypatch.setattr(executor_module, "MARKS", marks)
    for seed in range(3):
        items, machine = trace(program(Random(seed), *transfer)), Machine()
        made = Watched(Streams(GPU), cuda)
        play(cuda, made, machine, items)
        last = [i for i in items if isinstance(i, Op) and i.queue == "compute"][-1]
        assert last.records is not None
        made.wait(last.records)
        assert cuda.races() == []
        assert (machine.seen, machine.looked) == plainly(items)
        made.close()
        cuda.accesses.clear()


class Early(Streams):
    """Marks the end of an operation before it hands it over."""

    def run(self, queue: Queue, after: Sequence[object], work: Work) -> object:
        mark = super().run(queue, after, lambda: None)
        super().run(queue, (), work)
        return mark


def no_wait(*_args: object) -> None:
    """A wait that was left out."""


@pytest.mark.parametrize("fault", ["streams do not wait", "threads do not wait", "marks too early"])
def test_a_fault_is_found(cuda: Cuda, monkeypatch: pytest.MonkeyPatch, fault: str) -> None:
    if fault == "streams do not wait":
        monkeypatch.setattr(cuda.Stream, "wait_event", no_wait)
    if fault == "threads do not wait":
        monkeypatch.setattr(cuda.Event, "synchronize", no_wait)
    items, machine = trace(program(Random(0), "staged", "device")), Machine()
    made = Watched((Early if fault == "marks too early" else Streams)(GPU), cuda)
    play(cuda, made, machine, items)
    made.close()
    assert cuda.races() != []


@EVERY_TRANSFER
def test_after_close_the_device_is_still(cuda: Cuda, transfer: tuple[Transfer, Writeback]) -> None:
    """Nothing that was handed over may still use a slot that is given away."""
    driver, machine = Driver(Schedule(range(4), 3, *transfer)), Machine()
    made = Watched(Streams(GPU), cuda)
    play(cuda, made, machine, list(driver.do(("broken", 2))))
    made.close()
    assert cuda.idle()


def test_a_wait_of_the_host_lasts_until_the_device_is_there(cuda: Cuda) -> None:
    """A thread has handed the copy over long before it is done."""
    reached: list[bool] = []

    def copy() -> Iterator[None]:
        yield from [None] * 50
        reached.append(True)

    made = Executor(Streams(GPU))
    op = Op("d2h", "download", 0, records=("d2h", 1))
    made.submit(op, lambda: cuda.launch(op, copy()))
    made.wait(("d2h", 1))
    assert reached == [True]
    made.close()


class Late(Streams):
    """Copies are done late, by the model of a device; computing is done here, once they are."""

    cuda: Cuda

    def run(self, queue: Queue, after: Sequence[object], work: Work) -> object:
        if queue in ("h2d", "d2h"):
            return super().run(queue, after, lambda: self.cuda.later(work))
        for mark in after:
            self.wait(mark)
        return super().run(queue, (), work)


@pytest.mark.parametrize("tune", ["some", "lora"])
@pytest.mark.parametrize(
    ("transfer", "writeback"),
    [("memory", "device"), ("memory", "host"), ("staged", "device"), ("staged memory", "host")],
)
def test_a_streamed_model_whose_copies_come_late(
    cuda: Cuda, tmp_path: Path, transfer: str, writeback: str, tune: str
) -> None:
    device = Late(GPU)
    device.cuda = cuda
    late = {"executor": Executor(device), "transfer": transfer, "writeback": writeback, "slots": 2}
    found = []
    resident: dict[str, Any] = {}
    for settings in (resident, late):
        with rig(tmp_path, tune=tune, **settings) as made:
            for number in range(1, 5):
                made.step(number)
            found.append((made.losses, made.tensors()))
    (losses, tensors), (late_losses, late_tensors) = found
    assert losses == late_losses
    assert tensors.keys() == late_tensors.keys()
    assert all(torch.equal(tensor, late_tensors[name]) for name, tensor in tensors.items())
