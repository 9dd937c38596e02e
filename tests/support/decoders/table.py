"""docs/decoders.md: architectures and what works for them, as the campaign last found it."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Sequence
from importlib.metadata import version

from support.decoders.examine import Result

Check = Callable[[str], bool]
# What a column stands for: a cell is the worst outcome of the checks whose name it takes.
COLUMNS: dict[str, Check] = {
    "full": lambda c: c.startswith("full") and not _elsewhere(c),
    "LoRA": lambda c: c.startswith("lora") and not _elsewhere(c),
    "both signs at once": lambda c: ", paired" in c,
    "bfloat16": lambda c: "bfloat16" in c,
    "streamed": lambda c: "disk" in c,
    "resumed": lambda c: c.endswith("resumed"),
    "final/": lambda c: c.endswith("plain transformers"),
}
ORDER = ("ok", "skipped", "refused", "unsaid", "crash", "wrong")
WORDS = {
    "ok": "yes",
    "skipped": "not checked",
    "refused": "refused",
    "unsaid": "refused late",
    "crash": "**crash**",
    "wrong": "**wrong**",
}
HEAD = """\
# Decoders

Every causal decoder class of transformers {transformers}, as a tiny random model with torch {torch} and
peft {peft}: probes, slopes and steps beside a copy of the plain model whose weights were really moved,
runs that are resumed and streamed, results in plain transformers or peft. Written by
`bash scripts/decoders.sh`; not to be edited.

{counts}

*yes*: as by hand. *refused*: zoft says why and what to do (below). *refused late*: by `zoft train`, when
`zoft validate` found nothing. *not checked*: plain transformers fails there itself.

"""


def _elsewhere(check: str) -> bool:
    return any(word in check for word in ("bfloat16", "disk", "resumed", "plain", ", paired"))


def verdict(result: Result) -> str:
    """passed, refused, crash, wrong or not built: the worst that was found of an architecture."""
    findings = result["findings"]
    if findings[0]["check"] == "build" and findings[0]["status"] != "ok":
        return "not built"
    worst = max((f["status"] for f in findings), key=ORDER.index)
    return "passed" if worst in ("ok", "skipped") else str(worst)


def reasons(result: Result) -> list[str]:
    """What did not end well, each thing said once, without folders of the moment."""
    said: dict[str, str] = {}
    for finding in result["findings"]:
        if finding["status"] != "ok":
            detail = re.sub(r"/\S*/model\b", "MODEL", finding["detail"])
            said.setdefault(f"{finding['status']}: {detail}", finding["check"])
    return [f"{check}: {what}" for what, check in said.items()]


def page(results: Sequence[Result]) -> str:
    """The page, in Markdown."""
    counts = Counter(map(verdict, results))
    told = ", ".join(f"{number} {word}" for word, number in counts.most_common())
    versions = {name: version(name) for name in ("transformers", "torch", "peft")}
    lines = [HEAD.format(counts=f"{len(results)} architectures: {told}.", **versions)]
    lines.append("| architecture | " + " | ".join(COLUMNS) + " |")
    lines.append("|---" * (1 + len(COLUMNS)) + "|")
    built = [x for x in results if verdict(x) != "not built"]
    lines += [f"| {x['architecture']} | " + " | ".join(_cells(x)) + " |" for x in built]
    lines += ["", "## What is refused, and what is not right", ""]
    lines += [_listed(x) for x in built if verdict(x) != "passed"]
    lines += [
        "",
        "## Not built",
        "",
        "transformers makes no tiny model of these from their config alone.",
        "",
    ]
    lines += [_listed(x) for x in results if verdict(x) == "not built"]
    return "\n".join(lines) + "\n"


def _cells(result: Result) -> list[str]:
    cells = []
    for takes in COLUMNS.values():
        found = [f["status"] for f in result["findings"] if takes(f["check"])]
        cells.append(WORDS[max(found, key=ORDER.index)] if found else "-")
    return cells


def _listed(result: Result) -> str:
    return f"- **{result['architecture']}**: " + "; ".join(reasons(result)).replace("\n", " ")
