"""Streams of the stand-in accelerator: copies that come late, and who may overtake whom."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from random import Random
from typing import Any
from weakref import WeakKeyDictionary

from torch import Tensor

from support.offload.fake_cuda import Clock, Cuda, join


class Usage:
    """Of a piece of memory: its last write and the reads since then, each with its stream's time."""

    def __init__(self) -> None:
        self.write: tuple[object, int] | None = None
        self.reads: dict[object, int] = {}


class LateStreams(Cuda):
    """Copies of other streams than the one that computes are done by a thread, some time after they
    may; computing is done at once, after what its stream waits for. Accesses to the memory that they
    share which no event orders are `faults`, whatever order they happened in.
    """

    def __init__(self, random: Random, faults: list[str]) -> None:
        super().__init__(random)
        self._faults, self._used = faults, WeakKeyDictionary[Any, Usage]()
        self._host: Clock = defaultdict(int)

    def thread(self) -> Clock:
        """What the host knows: its threads tell each other."""
        return self._host

    def computing(self) -> bool:
        return self.current_stream() is self._default

    def later(  # type: ignore[override]
        self, reads: Sequence[Any], writes: Sequence[Any], work: Callable[[], object]
    ) -> None:
        """Have the current stream do it; what is written is spoiled meanwhile."""
        for tensor in (*reads, *writes):
            tensor.allocation.shared = True
        stream = self.current_stream()
        self._note(stream, reads, writes)

        def steps() -> Iterator[None]:
            for tensor in writes:
                _spoil(tensor.held)
            yield
            try:
                work()
            except Exception as error:  # raised here, it would end the thread, and all would wait
                self._faults.append(f"a late copy fails: {error}")

        with self._changed:
            stream.pending.append((lambda: True, steps()))  # type: ignore[attr-defined]
            self._changed.notify_all()

    @contextmanager
    def at_once(self, reads: Sequence[Any], writes: Sequence[Any]) -> Iterator[None]:
        """Inside, the compute stream has come to where its work is done now."""
        with self._changed:
            self._changed.wait_for(lambda: not self._default.pending)
        shared = [x.allocation.shared for x in (*reads, *writes)]
        if any(shared):
            self._note(self._default, reads, writes)
        yield

    def _note(self, stream: Any, reads: Sequence[Any], writes: Sequence[Any]) -> None:
        """Keep the accesses, and name those that nothing puts in order."""
        with self._changed:
            join(stream.clock, self._host)
            stream.clock[stream] += 1
            now = stream.clock[stream]
            for tensor in (*reads, *writes):
                if not tensor.allocation.shared:
                    continue
                used = self._used.setdefault(tensor.allocation, Usage())
                written = any(tensor is x for x in writes)
                before = [] if used.write is None else [used.write]
                before += list(used.reads.items()) if written else []
                if any(stream.clock.get(other, 0) < at for other, at in before):
                    self._faults.append("two streams use the same memory, and nothing orders them")
                if written:
                    used.write, used.reads = (stream, now), {}
                else:
                    used.reads[stream] = now


def _spoil(tensor: Tensor) -> None:
    """Fill with what no weight is: NaN, or the largest integer."""
    if tensor.is_floating_point():
        tensor.fill_(float("nan"))
    else:
        tensor.fill_(0xFF if tensor.element_size() == 1 and not tensor.dtype.is_signed else 1)
