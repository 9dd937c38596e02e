"""What may pass is tried again, what will not is said in one line.

huggingface_hub waits for ever for an answer, and repeats neither commits nor most of its questions.
"""

from __future__ import annotations

import json
import logging
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TypeVar

import httpx2
from huggingface_hub import set_client_factory
from huggingface_hub.errors import (
    HfHubHTTPError,
    HFValidationError,
    LocalTokenNotFoundError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from huggingface_hub.utils._http import default_client_factory
from huggingface_hub.utils.tqdm import (
    are_progress_bars_disabled,
    disable_progress_bars,
    enable_progress_bars,
)

from zoft.errors import EnvironmentProblem, ZoftError, first_line

PAUSES = (1.0, 2.0, 4.0, 8.0, 16.0)  # seconds between attempts
LONGEST_PAUSE = 120.0  # seconds that a server may ask us to wait
ANSWER_SECONDS = 120.0  # a commit of many files takes a while; silence is no progress
PASSING = (408, 412, 429, 500, 502, 503, 504)  # 412: somebody else committed first
LOGIN = "log in with `hf auth login`, or set HF_TOKEN"

_T = TypeVar("_T")
Say = Callable[[str], None]


def nothing() -> None:
    """The check of a caller that Ctrl-C ends at once."""


def patiently(action: Callable[[], _T], what: str, *, say: Say, check: Callable[[], None]) -> _T:
    """`action()`, again after each failure that may pass; it must be safe to repeat.

    `check` is called before every attempt and while waiting; what it raises ends it. Raises
    EnvironmentProblem, beginning with `what`, when patience is at its end or would not help.
    """
    for pause in (*PAUSES, None):
        check()
        try:
            return action()
        except ZoftError:
            raise
        except Exception as error:
            if not _may_pass(error) or pause is None:
                raise EnvironmentProblem(f"{what}: {reason(error)}") from error
            wait = max(pause, _asked_to_wait(error))
            say(f"{what}: {reason(error)}; again in {wait:g} s")
            _sleep(wait, check)
    raise AssertionError("the last attempt returns or raises")


def reason(error: BaseException) -> str:
    """One line about a failure of the Hub's client; it never holds an address or a token."""
    for cause in _causes(error):
        match cause:
            case LocalTokenNotFoundError():
                return f"you are not logged in: {LOGIN}"
            case OfflineModeIsEnabled():
                return "HF_HUB_OFFLINE is set"
            case HFValidationError():
                return first_line(cause)
            case RevisionNotFoundError():
                return "there is no such revision"
            case HfHubHTTPError() if cause.response.status_code == 401:
                if isinstance(cause, RepositoryNotFoundError):
                    return f"the repository is not there, or not for you: {LOGIN}"
                return f"the Hub refuses the token: {LOGIN}"
            case RepositoryNotFoundError():
                return "the repository is not there, or the token may not see it"
            case HfHubHTTPError() if cause.response.status_code == 403:
                return "the token may not write there: make one with write access to it"
            case HfHubHTTPError() if cause.response.status_code == 412:
                return "somebody else committed meanwhile"
            case HfHubHTTPError():
                said = cause.response.headers.get("X-Error-Message", cause.response.reason_phrase)
                return (
                    f"the Hub answered {cause.response.status_code} {first_line(Exception(said))}"
                )
            case httpx2.TimeoutException():
                return "the Hub does not answer"
            case httpx2.TransportError():
                return "the connection to the Hub broke"
            case json.JSONDecodeError():
                return "the Hub's answer makes no sense"
            case _:
                pass
    return first_line(error)


def _may_pass(error: BaseException) -> bool:
    for cause in _causes(error):
        if isinstance(cause, OfflineModeIsEnabled):
            return False
        if isinstance(cause, HfHubHTTPError):
            return cause.response.status_code in PASSING
        if isinstance(cause, httpx2.TransportError | json.JSONDecodeError):
            return True
    return False


def _asked_to_wait(error: BaseException) -> float:
    """Seconds of a Retry-After header, else 0."""
    for cause in _causes(error):
        if isinstance(cause, HfHubHTTPError):
            asked = cause.response.headers.get("Retry-After", "")
            return min(float(asked), LONGEST_PAUSE) if asked.isdigit() else 0.0
    return 0.0


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    """The error and what it was raised from: an upload wraps its errors."""
    while error is not None:
        yield error
        error = error.__cause__


def _sleep(seconds: float, check: Callable[[], None]) -> None:
    until = time.monotonic() + seconds
    while (left := until - time.monotonic()) > 0:
        check()
        time.sleep(min(left, 0.25))


@contextmanager
def careful_client() -> Iterator[None]:
    """Inside, no request waits for ever, and the client's own remarks (with addresses) are not shown."""
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
        set_client_factory(default_client_factory)
        logger.setLevel(level)
        if not bars:
            enable_progress_bars()


def _client() -> httpx2.Client:
    client = default_client_factory()
    client.timeout = httpx2.Timeout(ANSWER_SECONDS, connect=min(ANSWER_SECONDS, 20.0))
    return client
