from __future__ import annotations

import pytest
from support import tiny

from zoft.errors import DataError
from zoft.inference.prompts import spelled


@pytest.mark.parametrize(
    "template",
    [
        "{{ raise_exception('no system') }}",
        "{{ messages[0].content + 1 }}",
        "{{ 1 // 0 }}",
        "{{ messages[7].content.x }}",
        "{{ range(99999999) }}",
        {"rag": "a", "tool_use": "b"},  # none of them is the default
    ],
)
def test_a_template_that_fails_is_a_line(template: str | dict[str, str]) -> None:
    tokenizer = tiny.tokenizer()
    tokenizer.chat_template = template
    with pytest.raises(DataError, match="the chat template fails"):
        spelled(tokenizer, [{"role": "user", "content": "a"}])
