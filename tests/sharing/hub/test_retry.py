"""What is tried again, how often, and in which words it is given up."""

from __future__ import annotations

import json
from collections.abc import Callable

import pytest
from huggingface_hub.errors import HfHubHTTPError, LocalTokenNotFoundError

from zoft.errors import EnvironmentProblem, Interrupted
from zoft.sharing.hub import retry
from zoft.sharing.hub.retry import httpx, no_check, with_retries


def quiet(_: str) -> None:
    """Say nothing."""


def answered(status: int, **headers: str) -> HfHubHTTPError:
    request = httpx.Request("GET", "https://hub/api?token=secret")
    response = httpx.Response(status, headers=headers, request=request)
    return HfHubHTTPError(f"{status} for url https://hub/api?token=secret", response=response)


@pytest.fixture
def waited(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The seconds of each pause, none of which is taken."""
    found: list[float] = []
    monkeypatch.setattr(retry, "_sleep", lambda seconds, _: found.append(seconds))
    return found


def failing(*errors: BaseException) -> Callable[[], str]:
    left = list(errors)

    def action() -> str:
        if left:
            raise left.pop(0)
        return "done"

    return action


def wrapped(error: Exception) -> RuntimeError:
    """As the client wraps what goes wrong in an upload."""
    outer = RuntimeError("Error while uploading")
    outer.__cause__ = error
    return outer


def test_what_may_pass_is_tried_again(waited: list[float]) -> None:
    said: list[str] = []
    errors = (
        answered(500), answered(429, **{"Retry-After": "7"}), wrapped(httpx.ReadError("cut")),
        httpx.ReadTimeout("slow"), json.JSONDecodeError("?", "<", 0),
    )  # fmt: skip
    assert with_retries(failing(*errors), "cannot push", say=said.append, check=no_check) == "done"
    assert waited == [1.0, 7.0, 4.0, 8.0, 16.0]
    assert said[0] == "cannot push: the Hub answered 500 Internal Server Error; again in 1 s"
    assert "secret" not in "".join(said)


def test_patience_ends(waited: list[float]) -> None:
    with pytest.raises(EnvironmentProblem, match=r"^cannot push: the Hub does not answer$"):
        with_retries(
            failing(*[httpx.ReadTimeout("slow")] * 6), "cannot push", say=quiet, check=no_check
        )
    assert len(waited) == 5


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (answered(401), "the Hub refuses the token"),
        (answered(403), "the token may not write there"),
        (answered(422, **{"X-Error-Message": "no such object"}), "422 no such object"),
        (LocalTokenNotFoundError("long text"), "you are not logged in"),
        (ValueError("Invalid metadata in README.md."), "Invalid metadata"),
    ],
)
def test_what_will_not_pass_is_not(waited: list[float], error: Exception, words: str) -> None:
    with pytest.raises(EnvironmentProblem, match=words):
        with_retries(failing(error), "cannot push", say=quiet, check=no_check)
    assert waited == []


def test_a_pause_ends_when_the_run_is_stopped() -> None:
    asked = 0

    def check() -> None:
        nonlocal asked
        asked += 1
        if asked == 3:
            raise Interrupted("stopped", 143)

    with pytest.raises(Interrupted):
        with_retries(failing(answered(503)), "cannot push", say=quiet, check=check)
