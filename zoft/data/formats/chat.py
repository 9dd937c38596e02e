"""A chat: the tokenizer's template writes it out, the assistant's turns are learnt."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from jinja2 import TemplateError
from transformers import PreTrainedTokenizerBase

from zoft.data.columns import RowReader
from zoft.data.examples import TextExample
from zoft.data.files import Row, one_line
from zoft.data.tokens import Ids, Tokens, shared
from zoft.errors import DataError


@dataclass(frozen=True)
class Chat:
    """The turns of one conversation, as the chat template takes them; `number` is the row's."""

    turns: list[Row]
    number: int

    @property
    def texts(self) -> Sequence[str]:
        """None: a chat is tokenized by itself, with the characters at which its tokens begin."""
        return ()

    def example(self, _ids: Sequence[Ids], tokens: Tokens) -> TextExample:
        """A token is supervised if any of its characters lies in a reply.

        So is one that holds the blank or line break before it, too: the reply cannot be written
        without it. A token of the template's own that merely takes up blanks behind it is not.
        """
        try:
            whole, learnt = self.written(tokens.tokenizer)
        except (TemplateError, TypeError, KeyError) as error:
            problem = f"row {self.number}: the chat template fails ({one_line(error)})"
            raise DataError(problem) from error
        own, places = tokens.encode_with_places(whole)
        supervised = (
            p
            for p, place in enumerate(places)
            if p and any(overlaps(place, span, own[p] in tokens.greedy) for span in learnt)
        )
        return TextExample(own, tuple(supervised))

    def written(self, tokenizer: PreTrainedTokenizerBase) -> tuple[str, list[range]]:
        """The chat as the template writes it, and the characters of each reply with its end."""

        def render(count: int, prompted: bool = False) -> str:
            if count == 0:
                return ""
            return str(
                tokenizer.apply_chat_template(
                    self.turns[:count], tokenize=False, add_generation_prompt=prompted
                )
            )

        whole = render(len(self.turns))
        spans = []
        for i, turn in enumerate(self.turns):
            if turn["role"] == "assistant":
                span = span_of(turn, whole, render(i), render(i, prompted=True), render(i + 1))
                if span is None:
                    raise DataError(
                        f"row {self.number}: the chat template rewrites turn {i + 1} when others "
                        "follow; end the conversation there, or use format prompt-completion"
                    )
                spans.append(range(*span))
        return whole, spans


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


def listed_turns(role: str, shape: str, row: RowReader) -> list[dict[str, Any]]:
    turns = row.column(role)
    if not (isinstance(turns, list) and turns and all(isinstance(turn, dict) for turn in turns)):
        raise row.error(f"expected a list of {shape}")
    return turns


def require_known(role: str, known: Sequence[str], turn: int, row: RowReader) -> None:
    if role not in known:
        raise row.error(f"turn {turn} has the role {role!r}; the roles are {', '.join(known)}")


def span_of(
    turn: Row, whole: str, before: str, prompted: str, after: str
) -> tuple[int, int] | None:
    """Where in the whole chat a turn's reply stands, from its first character past its end token.

    `before` and `after` are the chat up to and with the turn, `prompted` is `before` with the
    header that asks for the reply. Templates of reasoning models spell a turn differently once
    others follow (they drop its thoughts); its content is searched then. None: not found.
    """
    content = str(turn.get("content") or "").strip()
    begin = shared(whole, prompted)
    if begin < len(prompted) and content:
        # The request ends in what this reply lacks (thoughts); both may begin with the same letter.
        lowest = max(len(before), begin - len(content))
        at = whole.rfind(content, lowest, begin + len(content))
        begin = at if at >= 0 else begin
    if not prompted:  # the chat opens with the assistant: no template can ask for that
        begin = whole.find(content) if content else len(after)
    if begin < 0 or not whole.startswith(before):
        return None
    if whole.startswith(after):
        return begin, len(after.rstrip())
    if not content:
        return None
    at, tail = whole.find(content, begin), after.rstrip().rpartition(content)[2]
    if at < 0 or not whole.startswith(tail, at + len(content)):
        return None
    return begin, at + len(content) + len(tail)
