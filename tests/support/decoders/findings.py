"""What a check of the campaign found."""

from __future__ import annotations

import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Literal

from zoft.errors import ZoftError, first_line

Status = Literal["ok", "skipped", "refused", "unsaid", "crash", "wrong"]  # the later, the worse


class Wrong(Exception):
    """A result that differs from the reference's, and nobody said so."""


class Unsaid(Exception):
    """A refusal of `zoft train` of which `zoft validate` says nothing, or the other way round."""


@dataclass(frozen=True)
class Finding:
    """The outcome of one check; `code` is the exit code that a user would see."""

    check: str
    status: Status
    detail: str = ""
    code: int = 0


@dataclass
class Findings:
    """The outcomes of an architecture's checks, in their order."""

    all: list[Finding] = field(default_factory=list)

    @contextmanager
    def check(self, name: str) -> Iterator[None]:
        """Note how the body ends: as it should, by a refusal, by `Wrong`, or by anything else."""
        try:
            yield
        except Wrong as error:
            self.all.append(Finding(name, "wrong", str(error)))
        except Unsaid as error:
            self.all.append(Finding(name, "unsaid", str(error)))
        except ZoftError as error:
            text = " / ".join(str(error).splitlines())
            self.all.append(Finding(name, "refused", text, error.exit_code))
        except Exception as error:
            frame = traceback.extract_tb(error.__traceback__)[-1]
            where = f"{frame.filename.rpartition('site-packages/')[2]}:{frame.lineno}"
            detail = f"{type(error).__name__}: {first_line(error)[:200]} ({where})"
            self.all.append(Finding(name, "crash", detail, 1))
        else:
            self.all.append(Finding(name, "ok"))

    def skip(self, name: str, why: str) -> None:
        """Note a check that was not made."""
        self.all.append(Finding(name, "skipped", why))

    def of(self, *statuses: Status) -> list[Finding]:
        """The findings with one of these statuses."""
        return [finding for finding in self.all if finding.status in statuses]

    def passed(self, name: str) -> bool:
        """Whether the check of that name was made and ended well."""
        return any(finding.check == name and finding.status == "ok" for finding in self.all)
