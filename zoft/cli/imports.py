"""Heavy imports happen inside the commands, and quietly."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

NOISY = ("torchao", "torch.utils._pytree", "bitsandbytes.backends.cpu.ops")  # while imported


@contextmanager
def quiet_imports() -> Iterator[None]:
    """peft and transformers import torchao and bitsandbytes wherever these are installed, and they log
    what of theirs this machine cannot use (kernels for other GPUs, a faster path zoft does not take)."""
    import logging

    loggers = [logging.getLogger(name) for name in NOISY]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
