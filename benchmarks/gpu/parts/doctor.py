"""`zoft doctor --gpu`, whose figures become rows.

python -m gpu.parts.doctor --out DIR
"""

from __future__ import annotations

import json
import sys

from gpu.measuring import part
from zoft.cli.main import main as zoft


def main() -> None:
    """Exit as the verb does: 1 if the card is not to be trusted."""
    a = part(__doc__)
    file = a.out / "doctor.json"
    code = zoft(["doctor", "--gpu", "--json", str(file)])
    if file.exists():
        report = json.loads(file.read_text(encoding="utf-8"))
        parity = report["found"].pop("parity", {})
        agree = f"{sum(parity.values())} of {len(parity)}"
        figures = {"trusted": report["trusted"], "seed": report["seed"], "kernels equal": agree}
        for what, found in (figures | report["found"]).items():
            a.results.emit("Doctor", what=what, found=found)
        for wrong in report["wrong"]:
            a.results.emit("Doctor", what="WRONG", found=wrong)
    sys.exit(code)


if __name__ == "__main__":
    main()
