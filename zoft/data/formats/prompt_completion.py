"""prompt-completion: the completion and EOS are learnt."""

from __future__ import annotations

from typing import Any

from zoft.data.columns import RowReader
from zoft.data.formats.format import Format
from zoft.data.formats.prompted import Completion


def parse(row: RowReader) -> Completion:
    """A completion follows its prompt directly, but that of a template after one blank."""
    if is_talk(row.column("completion")):
        raise row.error(
            "completion lists messages; write prompt and completion as one list in a column messages "
            "(weight: 0 in a reply leaves it unlearnt)"
        )
    answers = row.texts("completion")
    if row.template is None:
        return Completion.of(row.text("prompt"), answers)
    return Completion.of(row.filled(row.template), answers, templated=True)


def is_talk(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and isinstance(value[0], dict)


PROMPT_COMPLETION = Format(
    name="prompt-completion",
    reads=("prompt", "completion"),
    parse=parse,
    template_replaces="prompt",
)
