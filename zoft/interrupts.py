"""Ctrl-C and SIGTERM: a flag, looked at where a run can stop without losing anything."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import FrameType

from zoft.errors import Interrupted


@dataclass
class Stop:
    """Set by a signal; `check` raises Interrupted (exit code 128 + signal) at a safe point."""

    signal: int | None = None
    hint: str = ""

    def check(self) -> None:
        if self.signal is not None:
            name = signal.Signals(self.signal).name
            raise Interrupted(f"stopped by {name}{self.hint}", 128 + self.signal)


@contextmanager
def stop_on_signals(hint: str = "") -> Iterator[Stop]:
    """The first signal sets the flag, a second Ctrl-C leaves at once (the journal stays intact).

    `hint` tells the user how to go on.
    """
    stop = Stop(hint=hint)

    def note(number: int, _frame: FrameType | None) -> None:
        if stop.signal is not None and number == signal.SIGINT:
            raise KeyboardInterrupt
        stop.signal = number

    before = {number: signal.signal(number, note) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
