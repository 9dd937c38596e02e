"""The tests marked `gpu`, each of which becomes a row.

python -m gpu.parts.tests --out DIR
"""

from __future__ import annotations

import sys
from pathlib import Path

from gpu.measuring import part
from gpu.results import Results

TESTS = Path(__file__).parents[3] / "tests" / "on_gpu"


class Rows:
    """A plugin of pytest: a row for each test that ran or could not."""

    def __init__(self, results: Results) -> None:
        self.results = results

    def pytest_runtest_logreport(self, report: object) -> None:
        when, outcome = getattr(report, "when", ""), getattr(report, "outcome", "")
        if when == "call" or outcome != "passed":
            name, took = getattr(report, "nodeid", ""), getattr(report, "duration", 0.0)
            said = getattr(report, "longreprtext", "").strip().rpartition("\n")[2]
            row = {"outcome": outcome, "seconds": took, "why": said[:200] or None}
            self.results.emit("Tests", test=name.rpartition("/")[2], **row)


def main() -> None:
    """Exit as pytest does. Warnings of other versions than the tested ones are no failures."""
    a = part(__doc__)
    try:
        import pytest
    except ImportError:
        a.results.emit("Tests", test="all", outcome="left out", why="pytest is not installed")
        sys.exit(0)
    options = ["-m", "gpu", "-o", "filterwarnings=default", "-p", "no:cacheprovider", str(TESTS)]
    options += ["-k", "not lora"] if a.rehearse else []
    sys.exit(int(pytest.main(options, plugins=[Rows(a.results)])))


if __name__ == "__main__":
    main()
