"""Section `data` of a recipe: where rows come from and what a row is."""

from __future__ import annotations

from string import Formatter
from typing import Literal

from pydantic import Field, ValidationInfo, field_validator

from zoft.recipe.section import Counted, Section, TextMap

ROLES = ("text", "label", "prompt", "completion", "messages")


class DataSource(Section):
    path: str = Field(
        min_length=1,
        description="A .jsonl, .json, .csv or .parquet file, a folder of those, or a Hub set.",
    )
    name: str | None = Field(None, description="Configuration of a Hub set, e.g. sst2 of glue.")
    split: str | None = Field(None, description="Split, e.g. train or validation[:1000].")
    limit: Counted | None = Field(None, description="Use the first so many rows. Empty: all.")


class DataSection(Section):
    train: DataSource = Field(description="Rows to learn from.")
    eval: DataSource | None = Field(
        None, description="Rows scored before, during (eval.every) and after the run."
    )
    test: DataSource | None = Field(None, description="Rows scored once, at the end.")
    format: Literal["classification", "prompt-completion", "messages", "text"] = Field(
        "classification",
        description="What a row is. classification: columns text and label, scored over label "
        "words; prompt-completion: the completion is learnt; messages: a chat, the assistant's "
        "turns are learnt; text: every token is learnt.",
    )
    columns: TextMap = Field(
        {},
        description="Role to column name, where they differ. Roles: text, label, prompt, "
        "completion, messages.",
    )
    template: str | None = Field(
        None,
        validate_default=True,
        description="classification: the prompt, with {column} for a column of the row, e.g. "
        '"{text} It was". The label word follows it.',
    )
    labels: TextMap = Field(
        {},
        validate_default=True,
        description="classification: label value to label word, e.g. {0: terrible, 1: great}.",
    )
    max_length: int = Field(512, ge=2, description="Longest example, in tokens.")
    on_overflow: Literal["error", "drop", "truncate"] = Field(
        "error",
        description="A longer example stops the run, is dropped, or loses the start of its prompt "
        "(never its completion).",
    )

    @field_validator("columns")
    @classmethod
    def _known_roles(cls, columns: dict[str, str]) -> dict[str, str]:
        if unknown := [role for role in columns if role not in ROLES]:
            raise ValueError(f"no role {', '.join(unknown)}: the roles are {', '.join(ROLES)}")
        return columns

    @field_validator("template")
    @classmethod
    def _fits_a_row(cls, template: str | None, info: ValidationInfo) -> str | None:
        if template is None:
            if info.data.get("format") == "classification":
                raise ValueError('data.format classification needs one, e.g. "{text} It was"')
            return None
        try:
            fields = [field for _, field, _, _ in Formatter().parse(template) if field is not None]
        except ValueError as error:
            raise ValueError(f"{error}; a literal brace is written twice") from error
        if not fields or any(not field or field.isdigit() for field in fields):
            raise ValueError(f"{template!r} must name a column in braces, e.g. {{text}}")
        return template

    @field_validator("labels")
    @classmethod
    def _tells_labels_apart(cls, labels: dict[str, str], info: ValidationInfo) -> dict[str, str]:
        if info.data.get("format") == "classification" and len(labels) < 2:
            raise ValueError(
                "data.format classification needs at least two, e.g. {0: terrible, 1: great}"
            )
        if len(set(labels.values())) < len(labels):
            raise ValueError("two labels have the same word")
        return labels
