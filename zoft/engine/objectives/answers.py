"""How well a text answers: F1 and exact match as the evaluation of SQuAD has them.

Rajpurkar et al. 2016, arXiv 1606.05250, section 6.1: texts are compared after lower-casing and without
punctuation, the articles a, an, the, and surplus white space; F1 is that of the two bags of words;
of several right answers the best match counts.
"""

from __future__ import annotations

import re
import string
from collections import Counter
from collections.abc import Sequence

from transformers import PreTrainedTokenizerBase

from zoft.data.examples import Choice, Example, gold

_PUNCTUATION = str.maketrans("", "", string.punctuation)


def normalised(text: str) -> str:
    """Lower case; no punctuation (it is dropped: "well-known" is one word), no articles."""
    bare = text.lower().translate(_PUNCTUATION)
    return " ".join(re.sub(r"\b(a|an|the)\b", " ", bare).split())


def f1(text: str, answer: str) -> float:
    """2 PR / (P + R) over the words of both; where one has none, whether the other has none."""
    found, wanted = normalised(text).split(), normalised(answer).split()
    if not found or not wanted:
        return float(found == wanted)
    shared = sum((Counter(found) & Counter(wanted)).values())
    return 2.0 * shared / (len(found) + len(wanted))


def best_f1(text: str, answers: Sequence[str]) -> float:
    return max(f1(text, answer) for answer in answers)


def exact_match(text: str, answers: Sequence[str]) -> bool:
    return any(normalised(text) == normalised(answer) for answer in answers)


def prompt_of(example: Example) -> tuple[int, ...]:
    """What stands before the first supervised token."""
    text = gold(example)
    return text.ids[: text.supervised[0]]


def answers_of(example: Example, tokenizer: PreTrainedTokenizerBase) -> tuple[str, ...]:
    """The answers that the row names, else its supervised text: of a chat, the first reply."""
    if not isinstance(example, Choice) and example.answers:
        return example.answers
    text = gold(example)
    first = text.supervised[0]
    reply = [text.ids[p] for i, p in enumerate(text.supervised) if p == first + i]
    return (str(tokenizer.decode(reply, skip_special_tokens=True)),)
