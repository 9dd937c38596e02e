from __future__ import annotations

import pytest

from zoft.errors import EnvironmentProblem
from zoft.inference.session import find
from zoft.recipe.schema import ModelSection


@pytest.mark.parametrize("target", ["./nowhere", "no such/thing", "someone/unknown"])
def test_what_is_not_there_is_named_and_no_key_of_a_recipe(target: str) -> None:
    with pytest.raises(EnvironmentProblem) as caught:
        find(target, ModelSection(name="another"))
    assert target in str(caught.value)
    assert "model.name" not in str(caught.value)
