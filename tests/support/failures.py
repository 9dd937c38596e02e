"""Failures of a run at a chosen place, without another process."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from zoft.training.hooks import Narration
from zoft.training.trainer import Step, Trainer


class Killed(BaseException):
    """Stands for SIGKILL: nothing in zoft may catch it and tidy up."""


@contextmanager
def killed_after(step: int) -> Iterator[None]:
    """Runs inside end after a step that is in the journal and told, before all that follows it."""
    original = Narration.__call__

    def told(self: Narration, trainer: Trainer, taken: Step | None) -> None:
        original(self, trainer, taken)
        if taken is not None and trainer.step == step:
            raise Killed

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Narration, "__call__", told)
        with pytest.raises(Killed):
            yield
