"""The queues as threads. Work that sleeps at random, fails, is interrupted, or is dropped."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from random import Random

import pytest
import torch
from support.offload.clocks import Item, Look, Wait
from support.offload.interleaving import Machine, plainly
from support.offload.programs import TRANSFERS, Driver, Writeback, program, trace

from zoft.engine.offload.executor import Executor
from zoft.engine.offload.operations import Event, Op, Queue
from zoft.engine.offload.schedule import Schedule, Transfer

LOAD = Op("h2d", "upload", 0, records=("h2d", 1))
USE = Op("compute", "enter", 0, waits=(("h2d", 1),), records=("compute", 1))
SAVE = Op("d2h", "download", 0, waits=(("h2d", 1),), records=("d2h", 1))
EVERY_TRANSFER = pytest.mark.parametrize(
    "transfer", TRANSFERS, ids=lambda transfer: f"{transfer[0]}-{transfer[1]}"
)


def nothing() -> None:
    """Work that is done at once."""


@contextmanager
def executor() -> Iterator[Executor]:
    """Closed whatever happens."""
    made = Executor()
    try:
        yield made
    finally:
        made.close()


def play(
    made: Executor, machine: Machine, items: Sequence[Item], random: Random, fails: int = -1
) -> None:
    """Submit a trace whose works nap in the middle, wait where it waits, and at the end for all.

    Item number `fails` raises OSError when it is worked off.
    """

    def work(op: Op, breaks: bool) -> Callable[[], object]:
        naps = [random.choice((0, 0, 0, 1e-4, 1e-3)) for _ in range(3)]

        def run() -> None:
            for nap, _ in zip(naps, machine.work(op), strict=False):
                time.sleep(nap)
                if breaks:
                    raise OSError("no such luck")

        return run

    for number, item in enumerate(items):
        match item:
            case Op():
                made.submit(item, work(item, number == fails))
            case Wait(event):
                made.wait(event)
            case Look(buffer):
                machine.look(buffer)
    for item in items:
        if isinstance(item, Op) and item.records:
            made.wait(item.records)


@EVERY_TRANSFER
def test_threads_give_the_bytes_of_a_plain_run(transfer: tuple[Transfer, Writeback]) -> None:
    for seed in range(4):
        random, machine = Random(seed), Machine()
        items = trace(program(random, *transfer))
        with executor() as made:
            play(made, machine, items, random)
        assert (machine.seen, machine.looked) == plainly(items)


def test_two_at_once_do_not_meet() -> None:
    items = trace(program(Random(7), "staged", "device"))
    machines = [Machine(), Machine()]

    def run(seed: int) -> None:
        with executor() as made:
            play(made, machines[seed], items, Random(seed))

    threads = [threading.Thread(target=run, args=(seed,)) for seed in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [(machine.seen, machine.looked) for machine in machines] == [plainly(items)] * 2


@EVERY_TRANSFER
def test_an_error_in_any_operation_is_raised_again_and_again(
    transfer: tuple[Transfer, Writeback],
) -> None:
    driver = Driver(Schedule(range(4), 2, *transfer))
    actions = ["pass", "update", "pass"] if transfer[1] else ["pass", "pass"]
    items = [item for action in actions for item in driver.do((action, 0))]  # type: ignore[arg-type]
    for fails in range(len(items)):
        with executor() as made:
            with pytest.raises(OSError, match="no such luck"):
                play(made, Machine(), items, Random(fails), fails)
            with pytest.raises(OSError, match="no such luck"):
                made.submit(LOAD, nothing)
            with pytest.raises(OSError, match="no such luck"):
                made.wait(("h2d", 1))


def test_what_waits_for_an_error_is_dropped_without_being_done() -> None:
    done: list[str] = []
    release = threading.Event()

    def fail() -> None:
        release.wait()
        raise OSError("no such luck")

    with executor() as made:
        made.submit(LOAD, fail)
        made.submit(SAVE, lambda: done.append("saved"))
        release.set()
        with pytest.raises(OSError, match="no such luck"):
            made.wait(("d2h", 1))
    assert done == []


class Waiting(Executor):
    """Says when somebody stands still for an event."""

    def __init__(self) -> None:
        super().__init__()
        self.stands_still = threading.Event()

    def _await(self, events: Sequence[Event]) -> None:
        if events:
            self.stands_still.set()
        super()._await(events)


@pytest.fixture
def heeds_ctrl_c() -> Iterator[None]:
    """A job that a shell puts into the background begins with SIGINT ignored."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("heeds_ctrl_c")
@pytest.mark.parametrize(
    "stand_still",
    [lambda made: made.wait(("h2d", 1)), lambda made: made.submit(USE, nothing)],
    ids=["wait", "inline compute"],
)
def test_ctrl_c_ends_a_wait_that_would_last(stand_still: Callable[[Executor], None]) -> None:
    made, over = Waiting(), threading.Event()

    def work() -> None:
        made.stands_still.wait()
        time.sleep(0.05)  # Python may lose a lock that it is just taking
        os.kill(os.getpid(), signal.SIGINT)
        over.wait()

    made.submit(LOAD, work)
    with pytest.raises(KeyboardInterrupt):
        stand_still(made)
    over.set()
    made.close()


def test_the_time_that_computing_stands_still_is_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    made, clock = Waiting(), [0.0]
    monkeypatch.setattr(time, "perf_counter", lambda: clock[0])

    def take(seconds: float) -> None:
        made.stands_still.wait()
        clock[0] += seconds

    made.submit(LOAD, lambda: take(5.0))
    made.submit(USE, lambda: take(20.0))
    assert made.waited == 5.0  # and not while it computed
    made.wait(("compute", 1))
    assert made.waited == 5.0
    made.close()


def test_close_drops_what_is_queued_and_ends_every_thread() -> None:
    before = set(threading.enumerate())
    done: list[int] = []
    started = threading.Event()

    def slow() -> None:
        started.set()
        time.sleep(0.02)

    made = Executor()
    for n, queue in enumerate(("disk", "h2d", "d2h", "host")):
        made.submit(Op(queue, "read", n), slow)  # type: ignore[arg-type]
        made.submit(Op(queue, "read", n), slow)  # type: ignore[arg-type]
    made.submit(Op("d2h", "download", 9, waits=(("disk", 5),)), lambda: done.append(9))
    assert started.wait(10)
    assert {t.name for t in set(threading.enumerate()) - before} == {
        "zoft-disk", "zoft-h2d", "zoft-d2h", "zoft-host",
    }  # fmt: skip
    made.close()
    assert set(threading.enumerate()) <= before
    assert done == []
    made.close()  # twice is no harm
    with pytest.raises(RuntimeError, match="closed"):
        made.submit(LOAD, nothing)


def test_threads_that_move_bytes_leave_the_cores_to_what_computes() -> None:
    before = torch.get_num_threads()
    seen: dict[Queue, int] = {}
    queues: tuple[Queue, ...] = ("host", "disk", "h2d")

    def note(queue: Queue) -> None:
        seen[queue] = torch.get_num_threads()

    torch.set_num_threads(3)
    try:
        with executor() as made:
            for queue in queues:
                made.submit(Op(queue, "read", 0, records=(queue, 1)), partial(note, queue))
                made.wait((queue, 1))
        assert seen == {"disk": 1, "host": 3, "h2d": 1}
        assert torch.get_num_threads() == 3
    finally:
        torch.set_num_threads(before)
