"""Threads that do the operations of a plan: one for each queue; `compute` runs in the caller's.

On a GPU an operation is handed to a stream (`streams.Streams`), which returns at once: an event then
counts as recorded when its operation was handed over, and to wait for it is left to the device. A wait
of the host and a wait of a queue are different calls: `wait` blocks the caller, `submit` only says
what the operation must come after.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from queue import SimpleQueue
from threading import Condition, Thread
from typing import Protocol

import torch

from zoft.engine.offload.operations import Event, Op, Queue

Work = Callable[[], object]
SLICE = 0.5  # seconds
MARKS = 64  # of each queue; whoever waits for an older one waits for a little more


class Device(Protocol):
    """A GPU, where work may be handed over and not done yet. A mark stands for the end of such work."""

    def run(self, queue: Queue, after: Sequence[object], work: Work) -> object:
        """Have the queue's stream wait for marks, hand it the work, and mark the end."""

    def wait(self, mark: object) -> None:
        """Block until the mark is reached."""

    def synchronize(self) -> None:
        """Block until all that was handed over is done."""


class Executor:
    """Runs operations in the order of their queues and after what they wait for.

    `compute` runs in the thread that submits. The first error of any operation is raised by every
    later `submit` and `wait`, and whatever is still queued then is dropped.
    """

    def __init__(self, device: Device | None = None) -> None:
        self.device = device
        self.waited = 0.0  # seconds that `compute` and `wait` stood still for another queue
        self._changed = Condition()
        self._queues: dict[Queue, SimpleQueue[tuple[Op, Work] | None]] = {}
        self._threads: list[Thread] = []
        self._reached: dict[Queue, int] = {}  # the last event that each queue recorded
        self._marks: dict[Event, object] = {}  # the device's, of the last events of each queue
        self._last: dict[Queue, object] = {}  # the device's last mark of each queue
        self._cores = torch.get_num_threads()
        self._failure: BaseException | None = None

    def submit(self, op: Op, work: Work) -> None:
        """Queue the operation; `compute` runs it at once, in the caller's thread."""
        self._raise()
        if op.queue == "compute":
            self._run(op, work)
            self._raise()
            return
        if op.queue not in self._queues:
            self._queues[op.queue] = SimpleQueue()
            thread = Thread(
                target=self._serve, args=(op.queue,), name=f"zoft-{op.queue}", daemon=True
            )
            self._threads.append(thread)
            thread.start()
        self._queues[op.queue].put((op, work))

    def wait(self, event: Event) -> None:
        """Block until the event is recorded and what it stands for is done."""
        begun = time.perf_counter()
        self._await([event])
        self._raise()
        mark = self._mark(event)
        if mark is not None and self.device is not None:
            self.device.wait(mark)
        self.waited += time.perf_counter() - begun

    def fail(self, error: BaseException) -> None:
        """Have every later `submit` and `wait` raise this, as if an operation had failed."""
        with self._changed:
            self._failure = self._failure or error
            self._changed.notify_all()

    def close(self) -> None:
        """Drop what is queued and stop the threads; nothing may be submitted after it."""
        self.fail(RuntimeError("the executor is closed"))
        for waiting in self._queues.values():
            waiting.put(None)
        for thread in self._threads:
            thread.join()
        self._queues.clear()
        self._threads.clear()
        if self.device is not None:
            self.device.synchronize()  # what was handed over may still use slots and homes

    # -- in the threads -----------------------------------------------------------------------------

    def _serve(self, name: Queue) -> None:
        """Run the operations of a queue, one after the other, until `close`."""
        # Of this thread: what moves bytes leaves the cores to what computes.
        torch.set_num_threads(self._cores if name == "host" else 1)
        waiting = self._queues[name]
        while (item := waiting.get()) is not None:
            self._run(*item)

    def _run(self, op: Op, work: Work) -> None:
        """Do the work after the operation's events, unless anything failed; then record its own."""
        begun = time.perf_counter()
        try:
            self._await(op.waits)
            if op.queue == "compute":
                self.waited += time.perf_counter() - begun
            if self._failure is None:
                self._do(op, work)
        except BaseException as error:
            self.fail(error)
            if op.queue == "compute":
                raise
        finally:
            # Events of what was dropped count as recorded: no queue waits for ever.
            with self._changed:
                if op.records is not None:
                    self._reached[op.queue] = op.records[1]
                self._changed.notify_all()

    def _do(self, op: Op, work: Work) -> None:
        """Do the work, or hand it to the device and keep the mark of its end."""
        if self.device is None:
            work()
            return
        marks = [mark for event in op.waits if (mark := self._mark(event)) is not None]
        mark = self.device.run(op.queue, marks, work)
        if op.records is not None and mark is not None:
            with self._changed:
                self._marks[op.records] = self._last[op.queue] = mark
                self._marks.pop((op.queue, op.records[1] - MARKS), None)

    def _mark(self, event: Event) -> object:
        """The device's mark of an event; where it is forgotten, the last one of its queue."""
        with self._changed:
            return self._marks.get(event, self._last.get(event[0]))

    def _await(self, events: Sequence[Event]) -> None:
        """Block until the queues have recorded the events, or anything failed."""
        with self._changed:
            # In slices: a signal that the system hands to another thread wakes nobody here, and
            # Ctrl-C would wait for as long as the wait lasts.
            while not self._changed.wait_for(lambda: self._over(events), timeout=SLICE):
                pass

    def _over(self, events: Sequence[Event]) -> bool:
        """Whether the queues have recorded the events, or anything failed."""
        return self._failure is not None or all(
            self._reached.get(queue, 0) >= number for queue, number in events
        )

    def _raise(self) -> None:
        """Raise the first failure, if there was one."""
        if self._failure is not None:
            raise self._failure
