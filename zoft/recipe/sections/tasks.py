"""Tasks by name: the prompts that MeZO used (arXiv 2305.17333, appendix), for the columns of the
usual sets on the Hub (glue, super_glue, squad, drop). `data.template: NAME` takes one."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

YES = {"0": "No", "1": "Yes"}


@dataclass(frozen=True)
class Task:
    """The fields of section `data` that a task's name stands for."""

    summary: str
    template: str
    labels: Mapping[str, str] = field(default_factory=dict)
    options: str | list[str] | None = None
    columns: Mapping[str, str] = field(default_factory=dict)
    format: Literal["classification", "prompt-completion"] = "classification"


TASKS: dict[str, Task] = {
    "sst2": Task(
        "sentiment of a sentence (glue, sst2)",
        "{text} It was",
        {"0": "terrible", "1": "great"},
        columns={"text": "sentence"},
    ),
    "sst5": Task(
        "sentiment in five grades (SetFit/sst5)",
        "{text} It was",
        {"0": "terrible", "1": "bad", "2": "okay", "3": "good", "4": "great"},
    ),
    "rte": Task(
        "does a premise entail a hypothesis? (super_glue, rte)",
        '{premise}\nDoes this mean that "{hypothesis}" is true? Yes or No?\n',
        {"0": "Yes", "1": "No"},
    ),
    "cb": Task(
        "entailment, contradiction or neither (super_glue, cb)",
        'Suppose {premise} Can we infer that "{hypothesis}"? Yes, No, or Maybe?\n',
        {"0": "Yes", "1": "No", "2": "Maybe"},
    ),
    "boolq": Task(
        "yes-no questions on a passage (super_glue, boolq)", "{passage} {question}?\n", YES
    ),
    "wsc": Task(
        "whom does a pronoun refer to? (super_glue, wsc.fixed)",
        '{text}\nIn the previous sentence, does the pronoun "{span2_text}" refer to '
        "{span1_text}? Yes or No?\n",
        YES,
    ),
    "wic": Task(
        "the same sense of a word in two sentences? (super_glue, wic)",
        'Does the word "{word}" have the same meaning in these two sentences? Yes, No?\n'
        "{sentence1}\n{sentence2}\n",
        YES,
    ),
    "multirc": Task(
        "is this answer right? (super_glue, multirc)",
        '{paragraph}\nQuestion: {question}\nI found this answer "{answer}". Is that correct? '
        "Yes or No?\n",
        YES,
    ),
    "copa": Task(
        "the more plausible cause or effect (super_glue, copa)",
        "{premise:no-period} {question:effect=so,cause=because}",
        options=["{choice1:uncapital}", "{choice2:uncapital}"],
    ),
    "record": Task(
        "which entity fills the gap? (super_glue, record)",
        '{passage}\n{query}\nQuestion: What is the "@placeholder"?\nAnswer:',
        options="entities",
        columns={"label": "answers"},
    ),
    "squad": Task(
        "the answer to a question, from a passage (squad)",
        "Title: {title}\nContext: {context}\nQuestion: {question}\nAnswer:",
        columns={"completion": "answers"},
        format="prompt-completion",
    ),
    "drop": Task(
        "questions that need counting and adding (ucinlp/drop)",
        "Passage: {passage}\nQuestion: {question}\nAnswer:",
        columns={"completion": "answers_spans"},
        format="prompt-completion",
    ),
}
