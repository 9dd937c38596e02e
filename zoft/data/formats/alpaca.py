"""alpaca: `output` is learnt, after Stanford Alpaca's prompt of `instruction` and `input`."""

from __future__ import annotations

from zoft.data.columns import RowReader
from zoft.data.formats.format import Format
from zoft.data.formats.prompted import Completion

# The prompt that Stanford's Alpaca was tuned with; its first paragraph is the system's.
WITHOUT_INPUT = (
    "Below is an instruction that describes a task. "
    "Write a response that appropriately completes the request."
)
WITH_INPUT = (
    "Below is an instruction that describes a task, paired with an input that provides further "
    "context. Write a response that appropriately completes the request."
)


def parse(row: RowReader) -> Completion:
    """`input` may be empty. A `system` text stands in place of the prompt's first paragraph."""
    if row.row.get("history"):
        raise row.error("history has no place in Alpaca's prompt; write the row as messages")
    instruction, given = row.text("instruction"), row.optional("input")
    parts = [
        row.optional("system") or (WITH_INPUT if given else WITHOUT_INPUT),
        f"### Instruction:\n{instruction}",
        *([f"### Input:\n{given}"] if given else []),
        "### Response:\n",
    ]
    return Completion.of("\n\n".join(parts), [row.text("output")])


ALPACA = Format(name="alpaca", reads=("instruction", "output"), parse=parse)
