"""prompt-completion: the completion and EOS are learnt."""

from __future__ import annotations

from zoft.data.columns import RowReader
from zoft.data.formats.format import Format
from zoft.data.formats.prompted import Completion


def parse(row: RowReader) -> Completion:
    """A completion follows its prompt directly, but that of a template after one blank."""
    answers = row.texts("completion")
    if row.template is None:
        return Completion.of(row.text("prompt"), answers)
    return Completion.of(row.filled(row.template), answers, templated=True)


PROMPT_COMPLETION = Format(
    name="prompt-completion",
    reads=("prompt", "completion"),
    parse=parse,
    template_replaces="prompt",
)
