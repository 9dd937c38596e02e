"""An event of metrics.jsonl, as a run writes it."""

from __future__ import annotations

from typing import Any

from zoft.runs.metrics import Event


def train_event(step: int, **changes: Any) -> Event:
    event = {
        "event": "train",
        "step": step,
        "loss": 0.5,
        "loss_plus": [0.61],
        "loss_minus": [0.55],
        "projected_grad": [12.125],
        "lr": 1e-4,
        "skipped": 0,
        "seconds": 0.8,
        "tokens": 80,
    }
    return event | changes
