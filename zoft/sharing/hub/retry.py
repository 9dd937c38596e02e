"""Retry transient Hub errors (429, 5xx, timeouts) with backoff; explain the others in one line.

huggingface_hub waits for an answer without a limit, and repeats neither commits nor most other requests.
"""

from __future__ import annotations

import json
import logging
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

import tenacity
from huggingface_hub import errors, set_client_factory
from huggingface_hub.utils import _http
from huggingface_hub.utils.tqdm import (
    are_progress_bars_disabled,
    disable_progress_bars,
    enable_progress_bars,
)

from zoft.errors import EnvironmentProblem, ZoftError, first_line

# The HTTP library of huggingface_hub: httpx2, of its version 1 httpx, with the same names.
httpx: Any = vars(_http).get("httpx2") or vars(_http)["httpx"]

ATTEMPTS = 6
FIRST_PAUSE = 1.0  # seconds between the first two attempts; each pause is twice the one before
LONGEST_PAUSE = 120.0  # seconds that a server may ask us to wait
ANSWER_SECONDS = 120.0  # a commit of many files takes a while; silence is no progress
TRANSIENT = (408, 412, 429, 500, 502, 503, 504)  # 412: somebody else committed first
LOGIN = "log in with `hf auth login`, or set HF_TOKEN"

_T = TypeVar("_T")
Say = Callable[[str], None]


def no_check() -> None:
    """Check nothing: for a caller that Ctrl-C ends at once."""


def with_retries(action: Callable[[], _T], what: str, *, say: Say, check: Callable[[], None]) -> _T:
    """Return `action()`, called again after each transient failure; it must be safe to repeat.

    `check` is called before every attempt and while waiting; what it raises ends it. Raises
    EnvironmentProblem, beginning with `what`, for a failure that lasts or is not transient.
    """

    def attempt() -> _T:
        check()
        return action()

    def announce(state: tenacity.RetryCallState) -> None:
        assert state.next_action is not None
        say(f"{what}: {reason(_failure(state))}; again in {state.next_action.sleep:g} s")

    retrying = tenacity.Retrying(
        retry=tenacity.retry_if_exception(_is_transient),
        stop=tenacity.stop_after_attempt(ATTEMPTS),
        wait=_pause,
        before_sleep=announce,
        sleep=lambda seconds: _sleep(seconds, check),
        reraise=True,
    )
    try:
        return retrying(attempt)
    except ZoftError:
        raise
    except Exception as error:
        raise EnvironmentProblem(f"{what}: {reason(error)}") from error


def reason(error: BaseException) -> str:
    """Explain a failure of the Hub's client in one line that never holds an address or a token."""
    for cause in _causes(error):
        match cause:
            case errors.LocalTokenNotFoundError():
                return f"you are not logged in: {LOGIN}"
            case errors.OfflineModeIsEnabled():
                return "HF_HUB_OFFLINE is set"
            case errors.HFValidationError():
                return first_line(cause)
            case errors.RevisionNotFoundError():
                return "there is no such revision"
            case errors.HfHubHTTPError() if cause.response.status_code == 401:
                if isinstance(cause, errors.RepositoryNotFoundError):
                    return f"the repository is not there, or not for you: {LOGIN}"
                return f"the Hub refuses the token: {LOGIN}"
            case errors.RepositoryNotFoundError():
                return "the repository is not there, or the token may not see it"
            case errors.HfHubHTTPError() if cause.response.status_code == 403:
                return "the token may not write there: make one with write access to it"
            case errors.HfHubHTTPError() if cause.response.status_code == 412:
                return "somebody else committed meanwhile"
            case errors.HfHubHTTPError():
                said = cause.response.headers.get("X-Error-Message", cause.response.reason_phrase)
                return (
                    f"the Hub answered {cause.response.status_code} {first_line(Exception(said))}"
                )
            case httpx.TimeoutException():
                return "the Hub does not answer"
            case httpx.TransportError():
                return "the connection to the Hub broke"
            case json.JSONDecodeError():
                return "the Hub's answer makes no sense"
            case _:
                pass
    return first_line(error)


def _is_transient(error: BaseException) -> bool:
    for cause in _causes(error):
        if isinstance(cause, ZoftError | errors.OfflineModeIsEnabled):
            return False
        if isinstance(cause, errors.HfHubHTTPError):
            return cause.response.status_code in TRANSIENT
        if isinstance(cause, httpx.TransportError | json.JSONDecodeError):
            return True
    return False


def _failure(state: tenacity.RetryCallState) -> BaseException:
    error = state.outcome.exception() if state.outcome else None
    assert error is not None
    return error


def _pause(state: tenacity.RetryCallState) -> float:
    """Return the seconds to wait: doubled each time, or more if a Retry-After header asks for it."""
    backoff = tenacity.wait_exponential(FIRST_PAUSE)(state)
    for cause in _causes(_failure(state)):
        if isinstance(cause, errors.HfHubHTTPError):
            asked = cause.response.headers.get("Retry-After", "")
            return max(backoff, min(float(asked), LONGEST_PAUSE)) if asked.isdigit() else backoff
    return backoff


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    """Yield the error and what it was raised from: an upload wraps its errors."""
    while error is not None:
        yield error
        error = error.__cause__


def _sleep(seconds: float, check: Callable[[], None]) -> None:
    """Wait in short pieces: a signal handler sets a flag, which does not end a `time.sleep`."""
    until = time.monotonic() + seconds
    while (left := until - time.monotonic()) > 0:
        check()
        time.sleep(min(left, 0.25))


@contextmanager
def hub_client() -> Iterator[None]:
    """Give requests a timeout, and hide the client's own remarks, which hold addresses."""
    set_client_factory(_client)
    logger, bars = logging.getLogger("huggingface_hub"), are_progress_bars_disabled()
    level = logger.level
    logger.setLevel(logging.CRITICAL)
    disable_progress_bars()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        set_client_factory(_http.default_client_factory)
        logger.setLevel(level)
        if not bars:
            enable_progress_bars()


def _client() -> Any:
    client = _http.default_client_factory()
    client.timeout = httpx.Timeout(ANSWER_SECONDS, connect=min(ANSWER_SECONDS, 20.0))
    return client
