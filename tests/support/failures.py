"""Failures of a run at a chosen place, without another process."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from zoft.training.trainer import Trainer


class Killed(BaseException):
    """Stands for SIGKILL: nothing in zoft may catch it and tidy up."""


@contextmanager
def killed_after(step: int) -> Iterator[None]:
    """Runs inside end after a step that is in the journal and told, before all that follows it."""
    original = Trainer._tell

    def told(self: Trainer, *args: Any) -> None:
        original(self, *args)
        if self.step == step:
            raise Killed

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Trainer, "_tell", told)
        with pytest.raises(Killed):
            yield
