"""`python -m zoft` is the same as `zoft`."""

from __future__ import annotations

import sys

from zoft.cli.main import main

if __name__ == "__main__":
    sys.exit(main())
