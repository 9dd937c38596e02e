"""A GPU that is not there: streams and events as CUDA defines them, worked off late and in random order.

What is handed to a stream waits there; a thread of the device's own works it off. `races` says which
accesses nothing orders: of streams, and of the host's threads, which know of each other through the
executor and of a stream only through `Event.synchronize` and `synchronize`.
"""

from __future__ import annotations

import threading
import time
from collections import defaultdict, deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import combinations
from random import Random

from zoft.engine.offload.operations import Op

Clock = dict[object, int]  # of each thread and stream, how many of its accesses came before


@dataclass(frozen=True)
class Access:
    """`process` did the operation at its own time `at`, knowing `clock`."""

    op: Op
    process: object
    at: int
    clock: Clock


class Cuda:
    """Stands for `torch.cuda` while it is open: put `names` there."""

    names = ("Stream", "Event", "stream", "current_stream", "synchronize")

    def __init__(self, random: Random) -> None:
        cuda = self
        self._random, self._open = random, True
        self._changed = threading.Condition()
        self._threads: defaultdict[int, Clock] = defaultdict(lambda: defaultdict(int))
        self._local = threading.local()
        self._streams: list[Stream] = []
        self.accesses: list[Access] = []

        class Stream:
            def __init__(self, _device: object = None) -> None:
                self.clock: Clock = defaultdict(int)
                self.pending: deque[tuple[Callable[[], bool], Iterator[None]]] = deque()
                cuda._streams.append(self)

            def wait_event(self, event: Event) -> None:
                """What comes next on the stream begins when all before the event's record is done."""
                assert event.clock is not None, (
                    "CUDA takes an event that was never recorded as done"
                )
                with cuda._changed:
                    join(self.clock, event.clock)
                    self.pending.append((event.query, iter(())))

        class Event:
            def __init__(self, blocking: bool = False) -> None:
                assert blocking, "a thread that waits would spin"
                self.clock: Clock | None = None
                self.done = False

            def record(self, stream: Stream) -> None:
                assert self.clock is None, "used twice"
                with cuda._changed:
                    self.clock = dict(stream.clock)
                    stream.pending.append((lambda: True, self._reach()))
                    cuda._changed.notify_all()

            def _reach(self) -> Iterator[None]:
                self.done = True
                yield

            def query(self) -> bool:
                return self.done

            def synchronize(self) -> None:
                with cuda._changed:
                    cuda._changed.wait_for(self.query)
                    assert self.clock is not None
                    join(cuda.thread(), self.clock)

        self.Stream, self.Event = Stream, Event
        self._default = Stream()
        self._device = threading.Thread(target=self._work, daemon=True)
        self._device.start()

    # -- torch.cuda ---------------------------------------------------------------------------------

    @contextmanager
    def stream(self, stream: object) -> Iterator[None]:
        self._local.stream = stream
        try:
            yield
        finally:
            self._local.stream = None

    def current_stream(self, _device: object = None) -> object:
        return getattr(self._local, "stream", None) or self._default

    def synchronize(self, _device: object = None) -> None:
        with self._changed:
            self._changed.wait_for(lambda: not any(stream.pending for stream in self._streams))
            for stream in self._streams:
                join(self.thread(), stream.clock)

    # -- what tests do with it ----------------------------------------------------------------------

    def thread(self) -> Clock:
        """What the calling thread knows."""
        return self._threads[threading.get_ident()]

    def launch(self, op: Op, work: Iterator[None]) -> None:
        """Hand the work to the current stream, or do it now where there is none (a host's thread)."""
        stream = getattr(self._local, "stream", None)
        process = threading.get_ident() if stream is None else stream
        with self._changed:
            clock = self.thread() if stream is None else stream.clock
            join(clock, self.thread())
            clock[process] += 1
            self.accesses.append(Access(op, process, clock[process], dict(clock)))
            if stream is not None:
                stream.pending.append((lambda: True, work))
                self._changed.notify_all()
                return
        for _ in work:
            time.sleep(0)

    def later(self, work: Callable[[], object]) -> None:
        """Hand ordinary work to the current stream, which must be a stream of its own."""

        def steps() -> Iterator[None]:
            yield
            work()

        with self._changed:
            self._local.stream.pending.append((lambda: True, steps()))
            self._changed.notify_all()

    def idle(self) -> bool:
        return not any(stream.pending for stream in self._streams)

    def close(self) -> None:
        with self._changed:
            self._open = False
            self._changed.notify_all()
        self._device.join()

    def races(self) -> list[tuple[Op, Op]]:
        """Pairs of conflicting accesses of which neither knows of the other."""
        return [
            (a.op, b.op)
            for a, b in combinations(self.accesses, 2)
            if {*a.op.writes} & {*b.op.reads, *b.op.writes} or {*b.op.writes} & {*a.op.reads}
            if b.clock.get(a.process, 0) < a.at and a.clock.get(b.process, 0) < b.at
        ]

    def _work(self) -> None:
        """Each turn a bit of what is first on one of the streams, or nothing for a while."""
        while self._open:
            with self._changed:
                able = [s for s in self._streams if s.pending and s.pending[0][0]()]
                if not able:
                    self._changed.wait(0.01)
                    continue
                stream = self._random.choice(able)
                if next(stream.pending[0][1], self) is self:
                    stream.pending.popleft()
                self._changed.notify_all()
            if self._random.random() < 0.05:
                time.sleep(self._random.choice((1e-4, 1e-3)))


def join(clock: Clock, other: Clock) -> None:
    for process, at in other.items():
        clock[process] = max(clock.get(process, 0), at)
