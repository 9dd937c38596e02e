"""The checks of `zoft validate`: a line for each, and all problems at the end."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from zoft.errors import EnvironmentProblem, ZoftError


@dataclass
class Report:
    """What was found wrong so far; every check prints its line when it is done."""

    problems: list[ZoftError] = field(default_factory=list)

    @contextmanager
    def check(self, name: str) -> Iterator[Callable[[str], None]]:
        """A check calls what this yields with its good news, or raises."""
        try:
            yield lambda news: print(
                f"{name:11} ok, {news}" if news else f"{name:11} ok", flush=True
            )
        except ZoftError as error:
            self.problems.append(error)
            print(f"{name:11} not ok", flush=True)
        except OSError as error:
            self.problems.append(EnvironmentProblem(f"{error.filename or name}: {error.strerror}"))
            print(f"{name:11} not ok", flush=True)

    def skip(self, name: str, why: str) -> None:
        print(f"{name:11} not looked at: {why}", flush=True)

    def end(self) -> None:
        """Raise every problem, one a line, as the first kind of them."""
        if self.problems:
            problems = sorted(self.problems, key=lambda problem: problem.exit_code)
            raise type(problems[0])("\n".join(map(str, problems)))
