"""Every causal decoder of transformers against a reference by hand: `bash scripts/decoders.sh`."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from support import ROOT
from support.decoders.configs import ARCHITECTURES
from support.decoders.examine import examined
from support.decoders.table import page, reasons, verdict

OUT = Path(os.environ.get("DECODERS_OUT", ROOT / "runs/decoders"))
AGAIN = bool(os.environ.get("DECODERS_AGAIN"))


@pytest.mark.decoders
@pytest.mark.parametrize("name", ARCHITECTURES)
def test_a_decoder_is_right_or_refused(name: str) -> None:
    result = examined(name, OUT, again=AGAIN)
    print(f"{name}: {verdict(result)}, {result['seconds']} s", *reasons(result), sep="\n    ")
    assert verdict(result) in ("passed", "refused", "not built"), "\n".join(reasons(result))


@pytest.mark.decoders
def test_most_decoders_pass_and_the_page_says_which() -> None:
    """Once all were run: the page is written, then judged."""
    if not all((OUT / f"{name}.json").exists() for name in ARCHITECTURES):
        pytest.skip("not all architectures were run")
    results = [examined(name, OUT) for name in ARCHITECTURES]
    (ROOT / "docs/decoders.md").write_text(page(results))
    assert sum(verdict(x) == "passed" for x in results) >= 110
