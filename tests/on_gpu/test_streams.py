"""On a GPU: streams and events keep a streamed model's bytes, with slots poisoned before each fetch."""

from __future__ import annotations

import pytest
import torch
from support.offload.poison import PoisonedStreamer

from zoft.engine.offload import stream
from zoft.planning.doctor.toy_step import steps_agree

pytestmark = pytest.mark.gpu


def test_poisoned_slots_change_no_byte(
    device: torch.device, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stream, "Streamer", PoisonedStreamer)
    for seed in range(1 if device.type == "cpu" else 5):
        assert steps_agree(device, seed), seed
