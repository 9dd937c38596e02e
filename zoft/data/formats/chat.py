"""A chat: the tokenizer's template writes it out, the assistant's turns are learnt."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from inspect import signature
from typing import Any

from jinja2 import TemplateSyntaxError
from transformers import PreTrainedTokenizerBase
from transformers.utils.chat_template_utils import render_jinja_template

from zoft.data.columns import brief
from zoft.data.examples import TextExample
from zoft.data.files import Row, one_line
from zoft.data.formats.forms import FAILURES, attempt, suited
from zoft.data.tokens import Ids, Tokens, shared
from zoft.errors import DataError
from zoft.recipe.sections import template as templates

# What a turn may hold beside its text, by its names: left out by templates that do not know it.
THOUGHTS = (
    "reasoning_content",
    "thinking",
    "reasoning",
)  # the first is the one that templates read
BESIDES = (THOUGHTS, ("tool_calls",), ("tools",))
WORD = "\ue000"  # stands in no text: of Unicode's private use
MARKS = re.compile(r"\{%-?\s*generation\s*-?%\}")
# The date that templates write: Llama 3's own where they can ask for none. With today's, a run that
# goes on tomorrow would have other rows.
DAY = datetime(2024, 7, 26)

# What a row cannot give a template: how it is called.
RESERVED = {*signature(PreTrainedTokenizerBase.apply_chat_template).parameters, "messages"}

Render = Callable[..., str]


@dataclass(frozen=True)
class Chat:
    """The turns of one conversation, as the chat template takes them; `number` is the row's.

    `learnt` says of each turn whether it is. `tools` are the functions that it may call; `given` are
    further variables of the template by name, such as enable_thinking.
    """

    turns: list[Row]
    learnt: tuple[bool, ...]
    number: int
    tools: list[Row] | None = None
    given: Mapping[str, Any] = field(default_factory=dict)

    @property
    def texts(self) -> Sequence[str]:
        """None: a chat is tokenized by itself, with the characters that its tokens stand for."""
        return ()

    def example(self, _ids: Sequence[Ids], tokens: Tokens) -> TextExample:
        """A token is supervised if any of its characters lies in a reply.

        So is one that holds the blank or line break before it, too: the reply cannot be written
        without it. A token of the template's own that merely takes up blanks behind it is not.
        """
        try:
            whole, learnt = self.written(tokens.tokenizer)
        except TemplateSyntaxError as error:
            problem = f"the tokenizer's chat template is not valid ({one_line(error)})"
            raise DataError(problem) from error
        except FAILURES as error:
            roles = brief(", ".join(turn["role"] for turn in self.turns))
            raise DataError(
                f"row {self.number}: the chat template fails ({one_line(error)}); the row's turns are "
                f"{roles}: change them, or take a model whose template takes them"
            ) from error
        try:
            templates.as_text(whole)
        except ValueError as error:
            raise DataError(f"row {self.number}: {error} in the conversation") from error
        own, places = tokens.encode_with_places(whole)
        supervised = (
            p
            for p, place in enumerate(places)
            if p and any(overlaps(place, span, own[p] in tokens.greedy) for span in learnt)
        )
        return TextExample(own, tuple(supervised))

    def written(self, tokenizer: PreTrainedTokenizerBase) -> tuple[str, list[range]]:
        """The chat as the template writes it, and the characters of each reply with its end.

        A template that marks what the assistant generates ({% generation %}) has the last word.
        """
        template = self._template(tokenizer)

        def render(turns: list[Row], prompted: bool = False, **changes: Any) -> str:
            if not turns:
                return ""
            return str(
                tokenizer.apply_chat_template(
                    turns,
                    chat_template=template,
                    tokenize=False,
                    add_generation_prompt=prompted,
                    **{**self.given, "tools": self.tools, **changes},
                )
            )

        turns = suited([with_thoughts(turn) for turn in self.turns], render)
        whole = render(turns)
        self._require_whole(turns, whole, template, render)
        if MARKS.search(template):
            return whole, self._marked(turns, template, tokenizer)
        return whole, [
            self._span(turns, i, whole, render) for i, learnt in enumerate(self.learnt) if learnt
        ]

    def _template(self, tokenizer: PreTrainedTokenizerBase) -> str:
        try:
            return dated(tokenizer.get_chat_template(tools=self.tools))
        except ValueError as error:
            raise DataError(
                f"the tokenizer has several chat templates ({', '.join(tokenizer.chat_template or ())}) "
                "and none of the name default: rename the one that is meant in its files"
            ) from error

    def _span(self, turns: list[Row], i: int, whole: str, render: Render) -> range:
        before, asked = render(turns[:i]), render(turns[:i], prompted=True)
        after = render(turns[: i + 1])
        if whole.startswith(before) and whole.startswith(after):
            begin = shared(whole, asked)
            if not asked:  # the chat opens with the assistant: no template can ask for that
                begin = whole.find(spoken(turns[i])) if spoken(turns[i]) else len(after)
            elif begin < len(asked):
                # The request ends in what this reply lacks (thoughts); both may begin alike.
                begin = min(begin, shared(whole, render(with_word(turns[: i + 1], i))))
            return range(max(begin, 0), len(after.rstrip()))
        if span := self._replaced(turns, i, whole, asked[len(before) :], render):
            return span
        raise DataError(
            f"row {self.number}: the chat template rewrites turn {i + 1} when others "
            "follow; end the conversation there, or use format prompt-completion"
        )

    def _replaced(
        self, turns: list[Row], i: int, whole: str, header: str, render: Render
    ) -> range | None:
        """Where a reply stands that is spelt otherwise once others follow: where another would.

        Templates of reasoning models drop earlier thoughts; some end the last turn in another way.
        """
        until = with_word(turns[: i + 1], i)
        text = render(with_word(turns, i))
        start, found, rest = text.partition(WORD)
        if not found or not whole.endswith(rest):
            return None
        begin = start.rfind(header) + len(header) if header in start else len(start)
        for last in (render(until), render(until, prompted=True).removesuffix(header)):
            end = last.rpartition(WORD)[2].rstrip()
            if rest.startswith(end):
                behind = len(whole) - len(rest) + len(end)
                return range(min(begin, shared(whole, text)), behind)
        return None

    def _marked(
        self, turns: list[Row], template: str, tokenizer: PreTrainedTokenizerBase
    ) -> list[range]:
        """What the template itself marks as the assistant's."""
        special: dict[str, Any] = dict(tokenizer.special_tokens_map)
        # The library's annotation names the texts alone; with a mask it returns their marks, too.
        found: Any = render_jinja_template(
            [turns],
            tools=self.tools,  # type: ignore[arg-type]
            chat_template=template,
            return_assistant_tokens_mask=True,
            **{**special, **self.given},
        )
        spans = [range(*mark) for mark in found[1][0]]
        replies = [
            learnt
            for turn, learnt in zip(turns, self.learnt, strict=True)
            if turn["role"] == "assistant"
        ]
        if all(replies):
            return spans
        if len(spans) != len(replies):
            raise DataError(
                f"row {self.number}: the chat template marks {len(spans)} stretches for "
                f"{len(replies)} replies, so none can be left out; remove the turns' flags"
            )
        return [span for span, learnt in zip(spans, replies, strict=True) if learnt]

    def _require_whole(self, turns: list[Row], whole: str, template: str, render: Render) -> None:
        """Refuse a row whose functions, documents, calls, thoughts or turns the template leaves out."""
        if self.tools and same(render, turns, whole, tools=None):
            raise self._left_out("the functions of the column tools")
        for name in self.given.keys() - {"documents"}:
            if not re.search(rf"\b{re.escape(name)}\b", template):
                raise self._left_out(f"{name} of the column chat_template_kwargs")
        if self.given.get("documents") and same(render, turns, whole, documents=None):
            raise self._left_out("the documents of the column documents")
        for names in BESIDES:
            for i in (i for i, turn in enumerate(turns) if any(map(turn.get, names))):
                # As it is written at the conversation's end: later turns may hide thoughts.
                bare = {"content": "", **turns[i]}
                bare = {key: value for key, value in bare.items() if key not in names}
                if same(render, [*turns[:i], bare], render(turns[: i + 1])):
                    name = next(name for name in names if self.turns[i].get(name))
                    raise self._left_out(f"{name} of turn {i + 1}")
        if in_order(map(spoken, turns), whole):
            return
        for i, turn in enumerate(turns):
            if spoken(turn) and self._unwritten(turns, i, whole, render):
                raise self._left_out(f"the content of turn {i + 1} ({turn['role']})")

    def _unwritten(self, turns: list[Row], i: int, whole: str, render: Render) -> bool:
        """Whether another content of turn i would change nothing, not even at the end of the chat,
        where later turns cannot hide it."""
        other = with_word(turns, i, turns[i])
        upto = attempt(render, turns[: i + 1])
        return same(render, other, whole) and (upto is None or same(render, other[: i + 1], upto))

    def _left_out(self, what: str) -> DataError:
        return DataError(
            f"row {self.number}: the chat template leaves out {what}; take a model whose template "
            "writes it, or remove it from the rows"
        )


def dated(template: str) -> str:
    """The template with DAY in place of today."""
    return re.sub(
        r"strftime_now\((['\"])(.*?)\1\)", lambda found: repr(DAY.strftime(found[2])), template
    )


def with_thoughts(turn: Row) -> Row:
    """The turn with its thoughts under the names that templates read (gpt-oss's: thinking)."""
    thought = next((turn[name] for name in THOUGHTS if turn.get(name) is not None), None)
    return turn if thought is None else {"thinking": thought, **turn, THOUGHTS[0]: thought}


def in_order(texts: Iterable[str], whole: str) -> bool:
    """Whether the texts stand in `whole` one after the other."""
    at = 0
    for text in texts:
        at = whole.find(text, at)
        if at < 0:
            return False
        at += len(text)
    return True


def same(render: Render, turns: list[Row], text: str, **changes: Any) -> bool:
    """Whether the template writes `text` for other turns or functions, too."""
    try:
        return render(turns, **changes) == text
    except FAILURES:
        return False


def overlaps(place: range, span: range, greedy: bool) -> bool:
    """Whether a token that stands for the characters `place` belongs to a reply at `span`."""
    if greedy or not place:
        return place.start in span
    return place.start < span.stop and place.stop > span.start


def require_template(name: str, tokenizer: PreTrainedTokenizerBase) -> None:
    if tokenizer.chat_template is None:
        raise DataError(
            f"data.format: {name} needs a chat template, which this tokenizer lacks; "
            "take an instruction-tuned model, or format prompt-completion or alpaca"
        )


def with_word(turns: list[Row], i: int, turn: Row | None = None) -> list[Row]:
    """The turns with WORD, which is like no text, as the content of turn i: a reply, or like `turn`."""
    parts = isinstance(turns[i].get("content"), list)
    content = [{"type": "text", "text": WORD}] if parts else WORD
    other = {**(turn or {"role": "assistant"}), "content": content}
    return [*turns[:i], other, *turns[i + 1 :]]


def spoken(turn: Row) -> str:
    """The text of a turn without its thoughts."""
    content = turn.get("content")
    if isinstance(content, list):
        content = "".join(
            part if isinstance(part, str) else str(part.get("text", "")) for part in content
        )
    return str(content or "").rpartition("</think>")[2].strip()
