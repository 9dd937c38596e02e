"""`zoft generate`: what a model writes behind prompts."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence

import torch

from zoft.data.examples import TextExample
from zoft.engine.objectives.objective import objective_for
from zoft.errors import RecipeError
from zoft.inference.generation import Decoding, completions, require_room
from zoft.inference.prompts import as_tokens, is_chat, recipe_for, spelled
from zoft.inference.scoring import require_fits
from zoft.inference.session import find, opened
from zoft.planning.out_of_memory import memory_explained
from zoft.system.device import make_repeatable
from zoft.system.host_memory import hand_back_freed_memory
from zoft.system.signals import stop_on_signals

BATCH = 16  # prompts that are written behind at a time


def generate(
    target: str, prompts: Sequence[str], decoding: Decoding, *, raw: bool = False
) -> Iterator[str]:
    """The completion of each prompt, in their order.

    A prompt for a run that learnt from chats is a user's turn, unless `raw`. Raises ZoftError.
    """
    rows = min(BATCH, len(prompts))
    recipe = recipe_for(target, rows=rows, longest=2, max_new_tokens=decoding.max_new_tokens)
    device = torch.device(recipe.device)
    make_repeatable(device)
    hand_back_freed_memory()
    with stop_on_signals() as stop, memory_explained(recipe):
        found = find(target, recipe.model, _aside)
        chat = is_chat(target) and not raw
        if chat and found.tokenizer.chat_template is None:
            raise RecipeError(f"{target} learnt from chats and has no chat template: add --raw")
        texts = (
            [spelled(found.tokenizer, [{"role": "user", "content": text}]) for text in prompts]
            if chat
            else list(prompts)
        )
        ids = as_tokens(found.tokenizer, texts)
        examples = [TextExample(row, (len(row) - 1,)) for row in ids]
        stop.check()
        with opened(recipe, found, {"eval": examples}, _aside) as view:
            tokens = decoding.max_new_tokens
            require_room(view, ids, tokens, "shorten it, or lower --max-new-tokens")
            require_fits(view.model, examples, objective_for("lm"), found.tokenizer)
            for begin in range(0, len(ids), rows):
                yield from completions(
                    view,
                    found.tokenizer,
                    ids[begin : begin + rows],
                    decoding,
                    batch_size=rows,
                    device=device,
                    between=stop.check,
                )


def _aside(text: str) -> None:
    print(text, file=sys.stderr, flush=True)
