"""Chat templates of well-known model families, rebuilt in their form, with the replies marked.

Each opens a turn, ends it and asks for a reply as its family does; `{% generation %}` stands around what
the model writes, the end token included. `bare` takes the marks away, as most published ones are.
"""

from __future__ import annotations

import re

_LOOP = "{%- for m in messages -%}"
_ASK = "{%- if add_generation_prompt -%}"


def _template(
    user: str, opening: str, reply: str, closing: str = "''", ask: str | None = None
) -> str:
    """Jinja expressions: another's turn; what opens the assistant's, its text to the end token, what
    closes it; what asks for it (None: what opens it)."""
    return (
        f"{_LOOP}{{%- if m.role == 'assistant' -%}}{{{{ {opening} }}}}"
        f"{{% generation %}}{{{{ {reply} }}}}{{% endgeneration %}}{{{{ {closing} }}}}"
        f"{{%- else -%}}{{{{ {user} }}}}{{%- endif -%}}{{%- endfor -%}}"
        f"{_ASK}{{{{ {opening if ask is None else ask} }}}}{{%- endif -%}}"
    )


_THOUGHTS = (
    "('<think>\\n' + m.content.split('</think>')[0].split('<think>')[-1].strip() + '\\n</think>\\n\\n'"
    " if loop.last else '') + m.content.split('</think>')[-1].strip() + '<|im_end|>'"
)
FAMILIES = {
    "chatml": _template(
        "'<|im_start|>' + m.role + '\\n' + m.content + '<|im_end|>\\n'",
        "'<|im_start|>assistant\\n'", "m.content + '<|im_end|>'", "'\\n'",
    ),
    "llama-2": _template(
        "bos_token + '[INST] ' + m.content.strip() + ' [/INST]'",
        "''", "' ' + m.content.strip() + ' ' + eos_token",
    ),
    "llama-3": _template(
        "(bos_token if loop.first else '') + '<|start_header_id|>' + m.role + "
        "'<|end_header_id|>\\n\\n' + m.content | trim + '<|eot_id|>'",
        "'<|start_header_id|>assistant<|end_header_id|>\\n\\n'", "m.content | trim + '<|eot_id|>'",
    ),
    "mistral": _template(
        "(bos_token if loop.first else '') + '[INST] ' + m.content + '[/INST]'",
        "''", "' ' + m.content | trim + eos_token",
    ),
    "gemma": _template(
        "(bos_token if loop.first else '') + '<start_of_turn>' + m.role + '\\n' + m.content | trim "
        "+ '<end_of_turn>\\n'",
        "'<start_of_turn>model\\n'", "m.content | trim + '<end_of_turn>'", "'\\n'",
    ),
    "phi-3": _template(
        "'<|' + m.role + '|>\\n' + m.content + '<|end|>\\n'",
        "'<|assistant|>\\n'", "m.content + '<|end|>'", "'\\n'",
    ),
    "zephyr": _template(
        "'<|' + m.role + '|>\\n' + m.content + eos_token + '\\n'",
        "'<|assistant|>\\n'", "m.content + eos_token", "'\\n'",
    ),
    "vicuna": _template(
        "'USER: ' + m.content + ' '", "'ASSISTANT:'", "' ' + m.content + eos_token",
    ),
    "deepseek-r1": _template(
        "'<\uff5cUser\uff5c>' + m.content", "'<\uff5cAssistant\uff5c>'",
        "m.content.split('</think>')[-1] + '<\uff5cend▁of▁sentence\uff5c>'",
        ask="'<\uff5cAssistant\uff5c><think>\\n'",
    ),
    "qwen-3": _template(
        "'<|im_start|>' + m.role + '\\n' + m.content + '<|im_end|>\\n'",
        "'<|im_start|>assistant\\n'", _THOUGHTS, "'\\n'",
    ),
    "command-r": _template(
        "'<|START_OF_TURN_TOKEN|><|USER_TOKEN|>' + m.content + '<|END_OF_TURN_TOKEN|>'",
        "'<|START_OF_TURN_TOKEN|><|CHATBOT_TOKEN|>'", "m.content + '<|END_OF_TURN_TOKEN|>'",
    ),
    "gpt-oss": _template(
        "'<|start|>' + m.role + '<|message|>' + m.content + '<|end|>'", "'<|start|>assistant'",
        "'<|channel|>final<|message|>' + m.content + ('<|return|>' if loop.last and not "
        "add_generation_prompt else '<|end|>')",
    ),
    "granite": _template(
        "'<|start_of_role|>' + m.role + '<|end_of_role|>' + m.content + '<|end_of_text|>\\n'",
        "'<|start_of_role|>assistant<|end_of_role|>'", "m.content + '<|end_of_text|>'", "'\\n'",
    ),
    "tulu": _template(
        "'<|' + m.role + '|>\\n' + m.content + '\\n'",
        "'<|assistant|>\\n'", "m.content + eos_token", "'' if loop.last else '\\n'",
    ),
}  # fmt: skip


def bare(template: str) -> str:
    """The template without its marks."""
    return re.sub(r"\{% (end)?generation %\}", "", template)
