from __future__ import annotations

import pytest

from zoft.inference import locate


@pytest.mark.parametrize("name", ["nobody/nothing", "no id at all"])
def test_a_name_without_an_adapter_on_the_hub_is_none(name: str) -> None:
    assert locate.hub_adapter(name) is None


def test_a_hub_that_does_not_answer_has_no_adapter(monkeypatch: pytest.MonkeyPatch) -> None:
    """The model is looked for next, and says why it cannot be fetched."""

    def refuse(*_: object) -> str:
        raise RuntimeError("the connection is closed")

    monkeypatch.setattr(locate, "hf_hub_download", refuse)
    assert locate.hub_adapter("nobody/nothing") is None
