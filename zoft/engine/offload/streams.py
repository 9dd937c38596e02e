"""The queues of a plan on an accelerator: two copy streams, and the current stream to compute."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from zoft.engine.offload.executor import Work
from zoft.engine.offload.operations import Queue
from zoft.system import accelerator


class Streams:
    """`executor.Device` for one accelerator. Copies that are handed over must be from or to pinned
    memory."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        copies: tuple[Queue, ...] = ("h2d", "d2h")
        self._copies = {queue: accelerator.new_stream(device) for queue in copies}

    def run(self, queue: Queue, after: Sequence[Any], work: Work) -> object:
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
            stream.wait_event(event)
        with accelerator.on_stream(stream, self.device):
            work()
        done = accelerator.new_event(self.device)
        done.record(stream)
        return done

    def wait(self, mark: Any) -> None:
        """Block the calling thread until the event is reached."""
        mark.synchronize()

    def synchronize(self) -> None:
        """Block until all streams of the device are empty."""
        accelerator.synchronize(self.device)

    def _stream(self, queue: Queue) -> Any:
        """Return the queue's stream; None for a queue of the host."""
        if queue == "compute":
            return accelerator.current_stream(self.device)
        return self._copies.get(queue)
