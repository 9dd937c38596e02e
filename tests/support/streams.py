"""Models that run through slots, for tests."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from zoft.engine.offload.stream import stream
from zoft.engine.offload.weights import Streamed
from zoft.engine.optimizers.update import Tuned
from zoft.models.load import Loaded


def streamed_weights(
    loaded: Loaded,
    tuned: Sequence[Tuned],
    working: Path,
    *,
    kept: Sequence[str] = (),
    **settings: Any,
) -> Streamed:
    """The blocks that `loaded` left in its files, streamed on the CPU (from the disk, 3 slots)."""
    chosen = {"residency": "disk", "slots": 3, "device": torch.device("cpu"), **settings}
    streamer = stream(
        loaded.blocks, tuned, kept, loaded.sources, working=working, say=lambda _: None, **chosen
    )
    return Streamed(tuned, streamer)
