"""The device of the tests marked `gpu`."""

from __future__ import annotations

import pytest
import torch

from zoft.errors import EnvironmentProblem
from zoft.planning.doctor.gpu import card
from zoft.system.device import make_repeatable


@pytest.fixture(scope="session")
def device() -> torch.device:
    """The GPU; the CPU in a rehearsal (TRITON_INTERPRET=1)."""
    try:
        found = card()
    except EnvironmentProblem as error:
        pytest.skip(str(error))
    make_repeatable(found)
    return found


@pytest.fixture
def gpu(device: torch.device) -> torch.device:
    """The GPU, for what a rehearsal cannot show."""
    if device.type == "cpu":
        pytest.skip("needs a GPU: other tests show the same on the CPU")
    return device
