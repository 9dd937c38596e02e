"""`zoft chat`: a conversation with a model, question by question."""

from __future__ import annotations

import signal
import sys
from collections.abc import Callable, Iterator, Sequence

import torch
from rich.console import Console

from zoft.engine.probe.view import ProbedModel
from zoft.errors import DataError, RecipeError
from zoft.inference.generation import Decoding, Ids, continued, require_room, text_of
from zoft.inference.prompts import Turn, as_tokens, recipe_for, spelled
from zoft.inference.scoring import require_known
from zoft.inference.session import Found, find, opened
from zoft.planning.out_of_memory import memory_explained
from zoft.system.device import make_repeatable
from zoft.system.host_memory import hand_back_freed_memory
from zoft.system.signals import LeftAtOnce, stop_on_signals

CONTEXT = 2048  # tokens of a conversation for which room is made
COMMANDS = "/reset forgets what was said, /exit or Ctrl-D leaves, Ctrl-C stops an answer"
ASK = "\x01\x1b[1;36m\x02> \x01\x1b[0m\x02"  # the marks keep readline's count of columns right


def chat(target: str, decoding: Decoding) -> None:
    """Ask for questions until there are no more; answers go to stdout as they are written.

    Raises ZoftError, RecipeError for a model without a chat template.
    """
    tokens = decoding.max_new_tokens
    recipe = recipe_for(target, rows=1, longest=CONTEXT, max_new_tokens=tokens)
    device = torch.device(recipe.device)
    make_repeatable(device)
    hand_back_freed_memory()
    console = Console(stderr=True, highlight=False, markup=False, soft_wrap=True)
    with memory_explained(recipe):
        found = find(target, recipe.model, console.print)
        if found.tokenizer.chat_template is None:
            raise RecipeError(f"{target} has no chat template: use zoft generate {target}")
        with opened(recipe, found, None, console.print) as view:
            if console.is_terminal:
                console.print(f"{target}, {recipe.model.compute_dtype} on {recipe.device}")
                console.print(COMMANDS, style="dim")
            _converse(view, found, decoding, device, console)


def _converse(
    view: ProbedModel, found: Found, decoding: Decoding, device: torch.device, console: Console
) -> None:
    turns: list[Turn] = []
    for question in _questions(console):
        if question.startswith("/"):
            if question == "/exit":
                return
            if question == "/reset":
                turns.clear()
            else:
                console.print(COMMANDS, style="dim")
            continue
        asked = [*turns, {"role": "user", "content": question}]
        try:
            [ids] = as_tokens(found.tokenizer, [spelled(found.tokenizer, asked)])
            advice = "/reset begins anew, --max-new-tokens allows for shorter answers"
            require_room(view, [ids], decoding.max_new_tokens, advice)
            require_known(view.model, ids, found.tokenizer)
        except DataError as error:
            if not console.is_terminal:
                raise
            console.print(f"error: {error}")
            continue
        reply = answer(view, found, ids, decoding, device, _write)
        _write("\n")
        turns = [*asked, {"role": "assistant", "content": reply}]


def answer(
    view: ProbedModel,
    found: Found,
    ids: Ids,
    decoding: Decoding,
    device: torch.device,
    write: Callable[[str], None],
) -> str:
    """The reply, handed to `write` piece by piece. The first Ctrl-C ends it where it is."""
    shown = 0

    def show(rows: Sequence[Ids]) -> bool:
        nonlocal shown
        text = text_of(found.tokenizer, rows[0], decoding)
        if not text.endswith("\ufffd"):  # a letter of several tokens, of which some are missing
            write(text[shown:])
            shown = len(text)
        if stop.signal == signal.SIGTERM:
            stop.check()
        return stop.signal is not None

    with stop_on_signals() as stop:
        stop.patient = True
        [reply] = continued(view, found.tokenizer, [ids], decoding, device, show)
    text = text_of(found.tokenizer, reply, decoding)
    write(text[shown:])
    return text


def _questions(console: Console) -> Iterator[str]:
    """Lines of stdin that are not empty, until its end; asked for on a terminal."""
    asking = sys.stdin.isatty() and console.is_terminal
    if asking:
        import readline  # noqa: F401  # lets input() be edited
    while True:
        try:
            line = input(ASK if asking else "").strip()
        except EOFError:
            if asking:
                console.print()
            return
        except LeftAtOnce as stopped:
            if not asking or stopped.exit_code != 128 + signal.SIGINT:
                raise
            console.print()
            console.print(COMMANDS, style="dim")
            continue
        except UnicodeDecodeError as error:
            raise DataError(f"stdin is not text in UTF-8 ({error.reason})") from error
        if line:
            yield line


def _write(text: str) -> None:
    sys.stdout.write(text)
    sys.stdout.flush()
