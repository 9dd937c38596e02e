"""What a campaign found: rows in gpu.jsonl, one at a time, and gpu.md, which is written from them.

A row is a flat object. `table` says in which table of gpu.md it stands; its other keys are columns.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROWS, PAGE, LOG, TRACE = "gpu.jsonl", "gpu.md", "gpu.log", "trace.json.gz"
PARTS = "Parts"  # the table of what ran and how it ended
NOTES = {
    "Step": "Seconds of a step: the median. A floor is what the step would take if nothing but its "
    "bytes (floor by bytes) or its products (floor by arithmetic) cost time, {card}; over floor: "
    "the measured over the greater one. All contestants score the last token of a row.",
    "Sweep": "GB/s of one sweep over one matrix, read and written, and the most that its bytes and its "
    "instructions allow, {card}.",
    "Offload": "Blocks in host memory; every weight is tuned. The floor by bytes is that of the host's "
    "link, each way at once, {card}.",
    "Backprop": "Torch alone, on the rows and the loss of the steps above: what zoft is compared with.",
}


@dataclass(frozen=True)
class Results:
    """The folder of a campaign."""

    folder: Path

    def emit(self, table: str, **row: object) -> None:
        """Append a row at once, so that nothing that comes later can lose it."""
        with (self.folder / ROWS).open("a", encoding="utf-8") as file:
            file.write(json.dumps({"table": table, **row}, default=str) + "\n")
        print(f"{table}: {row}", flush=True)

    def rows(self) -> list[dict[str, Any]]:
        """All whole rows so far; the last line may have been cut."""
        file, found = self.folder / ROWS, []
        for line in file.read_text(encoding="utf-8").splitlines() if file.exists() else ():
            try:
                found.append(json.loads(line))
            except ValueError:
                continue
        return found

    def write_page(self, title: str, card: str) -> None:
        """Write gpu.md anew; `title` is its first line, `card` names what floors are computed for."""
        tables: dict[str, list[dict[str, Any]]] = {}
        for row in self.rows():
            tables.setdefault(row.pop("table"), []).append(row)
        lines = [title]
        for name in sorted(tables, key=lambda name: name != PARTS):  # the others as they came
            note = NOTES.get(name.partition(",")[0], "").format(card=card)
            lines += ["", f"## {name}", "", *([note, ""] if note else []), *markdown(tables[name])]
        part = self.folder / f".{PAGE}"
        part.write_text("\n".join(lines) + "\n", encoding="utf-8")
        part.replace(self.folder / PAGE)


def markdown(rows: list[dict[str, Any]]) -> list[str]:
    """A table with every column that a row has, in the order of their first appearance."""
    columns = list(dict.fromkeys(key for row in rows for key in row))
    lines = [f"| {' | '.join(columns)} |", f"|{'---|' * len(columns)}"]
    return lines + [f"| {' | '.join(cell(row.get(key)) for key in columns)} |" for row in rows]


def cell(value: object) -> str:
    """A number with three digits that count, a text on one line; nothing for None."""
    if value is None:
        return ""
    if isinstance(value, float):
        return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"
    return " ".join(str(value).replace("|", "\\|").split())
