"""prompt-completion: the completion and EOS are learnt."""

from __future__ import annotations

from zoft.data.columns import RowReader
from zoft.data.formats.format import Format
from zoft.data.formats.prompted import Completion, gap


def parse(row: RowReader) -> Completion:
    """A completion follows its prompt directly, but that of a template after a blank."""
    answers = row.texts("completion")
    if row.template is None:
        return Completion.of(row.text("prompt"), answers)
    return Completion.of(row.filled(row.template), answers, gap(row.template))


PROMPT_COMPLETION = Format(
    name="prompt-completion",
    reads=("prompt", "completion"),
    parse=parse,
    template_replaces="prompt",
)
