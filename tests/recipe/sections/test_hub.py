from __future__ import annotations

import pytest
from pydantic import ValidationError

from zoft.recipe.sections.hub import HubSection


@pytest.mark.parametrize(
    "values",
    [
        {"repo_id": "you/a-model_1.0", "push": "end"},
        {"repo_id": "mine", "push": "checkpoint", "private": False},
        {"base_model": "gpt2"},
        {"base_model": "org/name@refs/pr/1"},
    ],
)
def test_names_of_the_hub(values: dict[str, object]) -> None:
    section = HubSection(**values)  # type: ignore[arg-type]
    assert section.model_dump(exclude_unset=True) == values


@pytest.mark.parametrize(
    ("values", "key"),
    [
        ({"repo_id": "a/b/c"}, "repo_id"),
        ({"repo_id": "/data/x"}, "repo_id"),
        ({"base_model": "./folder"}, "base_model"),
        ({"base_model": "model.gguf@"}, "base_model"),
        ({"push": "end"}, "push"),
        ({"token": "hf_x"}, "token"),
    ],
)
def test_what_is_none(values: dict[str, object], key: str) -> None:
    with pytest.raises(ValidationError) as caught:
        HubSection(**values)  # type: ignore[arg-type]
    assert [error["loc"] for error in caught.value.errors()] == [(key,)]
