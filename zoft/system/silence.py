"""transformers prints bars and reports while it loads; what matters in them zoft says itself."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from logging import WARNING, Handler, LogRecord, getLogger
from typing import Any

from transformers.utils import logging as _logging

logging: Any = _logging  # its functions carry no types


@contextmanager
def quiet() -> Iterator[None]:
    """Inside: no progress bars and no warnings from transformers; outside: as they were."""
    verbosity, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
        if bars:
            logging.enable_progress_bar()


@contextmanager
def reports_kept(texts: list[str]) -> Iterator[None]:
    """Add to `texts`, and do not print, what transformers reports of a checkpoint that it loads."""

    class Keep(Handler):
        def emit(self, record: LogRecord) -> None:
            texts.append(re.sub(r"\x1b\[[0-9;]*m", "", record.getMessage()))

    logger, handler = getLogger("transformers.modeling_utils"), Keep()
    before = logger.level, logger.propagate
    logger.addHandler(handler)
    logger.setLevel(WARNING)
    logger.propagate = False
    try:
        yield
    finally:
        logger.removeHandler(handler)
        logger.setLevel(before[0])
        logger.propagate = before[1]


def misfit(report: str) -> str | None:
    """The first tensor of such a report that has another shape than the model's, or that no conversion
    takes, with the reason."""
    size = r"torch\.Size\((\[.*?\])\)"
    if found := re.search(rf"(\S+) +\| MISMATCH +\| .*?ckpt: {size} vs model: ?{size}", report):
        name, stored, wanted = found.groups()
        return f"{name} has shape {stored} in the files, {wanted} by config.json"
    found = re.search(
        r"(\S+) +\| CONVERSION +\|.*?^\w*Error: ([^\n]+)", report, re.DOTALL | re.MULTILINE
    )
    return f"{found[1]} cannot be made of what the files hold: {found[2]}" if found else None
