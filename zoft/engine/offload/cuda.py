"""The queues of a plan on a GPU: two copy streams, and the current stream to compute."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from zoft.engine.offload.executor import Work
from zoft.engine.offload.operations import Queue


class Streams:
    """`executor.Device` for one GPU. Copies that are handed over must be from or to pinned memory."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        copies: tuple[Queue, ...] = ("h2d", "d2h")
        self._copies = {
            queue: torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
            for queue in copies
        }

    def run(self, queue: Queue, after: Sequence[object], work: Work) -> object:
        """Have the queue's stream wait for the events `after`, then hand it the work.

        `disk` and `host` have no stream: they wait themselves, and their work is done on return.
        """
        stream = self._stream(queue)
        if stream is None:
            for event in after:
                self.wait(event)
            work()
            return None
        for event in after:
            assert isinstance(event, torch.cuda.Event)
            stream.wait_event(event)
        with torch.cuda.stream(stream):
            work()
        # Blocking: a thread that waits for it sleeps, and leaves its core to the host's own work.
        done = torch.cuda.Event(blocking=True)  # type: ignore[no-untyped-call]
        done.record(stream)
        return done

    def wait(self, mark: object) -> None:
        """Block the calling thread until the event is reached."""
        assert isinstance(mark, torch.cuda.Event)
        mark.synchronize()

    def synchronize(self) -> None:
        """Block until all streams of the device are empty."""
        torch.cuda.synchronize(self.device)

    def _stream(self, queue: Queue) -> torch.cuda.Stream | None:
        """Return the queue's stream; None for a queue of the host."""
        if queue == "compute":
            return torch.cuda.current_stream(self.device)
        return self._copies.get(queue)
