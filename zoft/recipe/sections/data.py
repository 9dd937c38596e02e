"""Section `data` of a recipe: where rows come from and what a row is."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Literal

from pydantic import BeforeValidator, Field, ValidationInfo, field_validator

from zoft.recipe.sections.base import Counted, Positive, Section, TextMap, Words
from zoft.recipe.sections.tasks import TASKS
from zoft.recipe.sections.template import problem_of

FormatName = Literal[
    "classification", "prompt-completion", "alpaca", "sharegpt", "messages", "text"
]  # fmt: skip
ROLES = (
    "text", "label", "prompt", "completion", "instruction", "input", "output", "system",
    "conversations", "messages", "tools",
)  # fmt: skip
TEMPLATED = ("classification", "prompt-completion")


class DataSource(Section):
    path: str = Field(
        min_length=1,
        description="A .jsonl, .json, .csv or .parquet file, a folder of those, or a Hub set.",
    )
    name: str | None = Field(None, description="Configuration of a Hub set, e.g. sst2 of glue.")
    split: str | None = Field(None, description="Split, e.g. train or validation[:1000].")
    limit: Counted | None = Field(None, description="Use the first so many rows. Empty: all.")
    weight: Positive | None = Field(
        None,
        description="With several sources: this one's share of the rows, in proportion to the others' "
        "weights. Rows are repeated or left out so that it holds. Empty: its number of rows.",
    )
    streaming: bool = Field(
        False,
        description="Hub sets: read only the rows that are needed: limit, else (train) steps times "
        "batch_size.",
    )


Sources = DataSource | list[DataSource]


def _nonempty(value: object) -> object:
    if isinstance(value, list) and not value:
        raise ValueError("an empty list; name at least one")
    return value


Named = Annotated[Sources, BeforeValidator(_nonempty)]


def _in_quotes(value: object) -> object:
    """YAML reads `template: {text}` as a mapping."""
    texts = value if isinstance(value, list) else [value]
    if any(isinstance(text, dict) for text in texts):
        raise ValueError('a text that begins with a brace is written in quotes, e.g. "{text}"')
    return value


Texts = Annotated[str | list[str] | None, BeforeValidator(_in_quotes)]


class DataSection(Section):
    train: Named = Field(
        description="Rows to learn from: one source, or a list of sources (see weight)."
    )
    eval: Named | None = Field(
        None, description="Rows scored before, during (eval.every) and after the run."
    )
    test: Named | None = Field(None, description="Rows scored once, at the end.")
    format: Literal["auto"] | FormatName = Field(
        "auto",
        description="What a row is. classification: a template's prompt, scored over label words or "
        "options; prompt-completion: the completion is learnt; alpaca: instruction, input, output; "
        "sharegpt: conversations of from and value; messages: a chat, the assistant's turns are "
        "learnt; text: every token is learnt. auto: classification where labels or options are "
        "given, else by the columns of the first rows.",
    )
    columns: TextMap = Field(
        {},
        description="Role to column name, where they differ. Roles: text, label, prompt, "
        "completion, instruction, input, output, system, conversations, messages, tools.",
    )
    labels: Words = Field(
        {},
        description="classification: label value to label word, e.g. {0: terrible, 1: great}.",
    )
    options: Texts = Field(
        None,
        description="classification where every row has words of its own: their templates, e.g. "
        '["{choice1}", "{choice2}"], or the column that lists them. The label is the number of the '
        "right one, from 0, or its text.",
    )
    template: Texts = Field(
        None,
        validate_default=True,
        description="classification, prompt-completion: the prompt, with {column} for a column of the "
        'row, e.g. "{text} It was"; the label word or completion follows it. Or the name of a task '
        "(zoft data templates), which brings its columns and label words. A list: each training row "
        "takes one at random, rows to score the first.",
    )
    max_length: int = Field(512, ge=2, description="Longest example, in tokens.")
    on_overflow: Literal["error", "drop", "truncate"] = Field(
        "error",
        description="A longer example stops the run, is dropped, or loses the start of its prompt "
        "(never its completion).",
    )

    @field_validator("eval", "test")
    @classmethod
    def _ends(cls, sources: Sources | None) -> Sources | None:
        for source in listed(sources):
            if source.streaming and source.limit is None:
                raise ValueError(f"{source.path}: rows to score that are streamed need a limit")
        return sources

    @field_validator("columns")
    @classmethod
    def _known_roles(cls, columns: dict[str, str]) -> dict[str, str]:
        if unknown := [role for role in columns if role not in ROLES]:
            raise ValueError(f"no role {', '.join(unknown)}: the roles are {', '.join(ROLES)}")
        return columns

    @field_validator("labels")
    @classmethod
    def _tells_labels_apart(cls, labels: dict[str, str]) -> dict[str, str]:
        if len(labels) == 1:
            raise ValueError(
                "data.format classification needs at least two, e.g. {0: terrible, 1: great}"
            )
        if len(set(labels.values())) < len(labels):
            raise ValueError("two labels have the same word")
        return labels

    @field_validator("options")
    @classmethod
    def _either_options_or_labels(
        cls, options: str | list[str] | None, info: ValidationInfo
    ) -> str | list[str] | None:
        if options is not None and info.data.get("labels"):
            raise ValueError("each row has its own words, or all have data.labels; remove one")
        if isinstance(options, list):
            if len(options) < 2:
                raise ValueError("needs at least two, e.g. ['{choice1}', '{choice2}']")
            for template in options:
                if problem := problem_of(template):
                    raise ValueError(problem)
        return options

    @field_validator("template")
    @classmethod
    def _fits_the_format(
        cls, template: str | list[str] | None, info: ValidationInfo
    ) -> str | list[str] | None:
        if "format" not in info.data:
            return template  # what is wrong there is said there
        task = TASKS.get(template) if isinstance(template, str) else None
        # Wrong labels are said to be wrong; they are labels all the same.
        classes = bool(info.data.get("labels", True) or info.data.get("options", True))
        form = info.data["format"]
        if form == "auto":
            form = task.format if task else "classification" if classes else "auto"
        if task and task.format != form:
            raise ValueError(f"the task {template} is {task.format}; remove data.format {form}")
        if classes and form != "classification":
            raise ValueError(f"data.labels and data.options do not go with data.format {form}")
        if template is None:
            if form == "classification":
                raise ValueError('data.format classification needs one, e.g. "{text} It was"')
            return None
        if form == "auto":
            raise ValueError("classification needs data.labels as well, or name data.format")
        if form not in TEMPLATED:
            raise ValueError(f"data.format {form} has none; {' and '.join(TEMPLATED)} do")
        if task:
            return template
        if not template:
            raise ValueError("an empty list; give at least one")
        for one in [template] if isinstance(template, str) else template:
            if problem := problem_of(one):
                raise ValueError(problem)
        if form == "classification" and not classes:
            raise ValueError(
                "data.format classification needs data.labels, e.g. {0: terrible, 1: great}"
            )
        return template


def listed(sources: Sources | None) -> Sequence[DataSource]:
    """One source, several or none, as a list."""
    if sources is None:
        return ()
    return sources if isinstance(sources, list) else [sources]


def with_task(data: DataSection) -> DataSection:
    """Spell out a task's template; what the recipe says itself stays. Settles `format: auto` as far
    as it follows from the recipe alone. Idempotent."""
    update: dict[str, object] = {}
    task = TASKS.get(data.template) if isinstance(data.template, str) else None
    if task:
        update = {"template": task.template, "columns": {**task.columns, **data.columns}}
        if not data.labels and data.options is None:
            update |= {"labels": dict(task.labels), "options": task.options}
    if data.format == "auto":
        if task:
            update["format"] = task.format
        elif data.labels or data.options:
            update["format"] = "classification"
    return data.model_copy(update=update)
