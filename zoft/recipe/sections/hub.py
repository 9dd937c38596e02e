"""Section `hub` of a recipe: where its result is pushed."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, ValidationInfo, field_validator

from zoft.recipe.sections.base import Section

HUB_NAME = r"[A-Za-z0-9][\w.-]*"  # one half of a Hub id


class HubSection(Section):
    repo_id: str | None = Field(
        None,
        pattern=rf"^({HUB_NAME}/)?{HUB_NAME}$",
        description="Where `zoft push` puts the run: USER/NAME, or NAME for your own account.",
    )
    private: bool = Field(True, description="Whether a repository that a push makes is private.")
    push: Literal["never", "end", "checkpoint"] = Field(
        "never",
        validate_default=True,
        description="Push at the end of the run, or at every checkpoint as well. The right to write "
        "is checked before the run starts; a push that fails does not harm it.",
    )
    base_model: str | None = Field(
        None,
        pattern=rf"^({HUB_NAME}/)?{HUB_NAME}(@[\w./-]+)?$",
        description="What the base model is called on the Hub, USER/NAME or USER/NAME@REVISION, where "
        "model.name is a folder or a file.",
    )

    @field_validator("push")
    @classmethod
    def _somewhere(cls, push: str, info: ValidationInfo) -> str:
        if push != "never" and info.data.get("repo_id") is None:
            raise ValueError(f"{push} needs hub.repo_id")
        return push
