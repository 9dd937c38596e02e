"""The runs of convergence.py as curves, and the tables made of them."""

from __future__ import annotations

import json
import statistics
from dataclasses import dataclass
from pathlib import Path
from typing import Any

BATCH = 16  # rows of a forward pass


@dataclass(frozen=True)
class Run:
    """One run of the grid."""

    method: str
    lr: float
    seed: int
    steps: int

    @property
    def passes(self) -> int:
        """Forward passes in a step; a backward pass counts as two, and blocks that are run again for it
        as one."""
        if self.method == "tail-all":
            return 4
        return 3 if self.method.startswith("adamw") else 2

    def folder(self, runs: Path) -> Path:
        return runs / f"{self.method}-lr{self.lr:g}-seed{self.seed}-{self.steps}"

    def curve(self, runs: Path) -> list[dict[str, Any]]:
        """The evaluations so far: forwards, accuracy, loss. A tail is solved before the first step, by
        plain passes of BATCH rows; its score comes after the first."""
        folder = self.folder(runs)
        file, record = folder / "metrics.jsonl", folder / "run.json"
        lines = file.read_text(encoding="utf-8").splitlines() if file.exists() else []
        events = [json.loads(line) for line in lines]
        tail = json.loads(record.read_text()).get("tail") if record.exists() else None
        solved = -(-tail["rows"] // BATCH) if tail else 0
        scored = {e["step"]: e for e in events if e["event"] == "eval"}
        found = [
            {**e, "forwards": solved + step * self.passes if step else 0}
            for step, e in sorted(scored.items())
        ]
        alone = [{**e, "forwards": solved} for e in events if e["event"] == "tail"][-1:]
        return [*found[:1], *alone, *found[1:]]

    def finished(self, runs: Path) -> bool:
        curve = self.curve(runs)
        ended = bool(curve) and curve[-1]["step"] >= self.steps
        return ended and (self.folder(runs) / "final").is_dir()


def best(run: Run, runs: Path) -> tuple[float, float]:
    """The highest accuracy on the curve, then the lowest loss (negative)."""
    curve = [e for e in run.curve(runs) if e["loss"] is not None]
    return max((e["accuracy"] for e in curve), default=0.0), -min(
        (e["loss"] for e in curve), default=float("inf")
    )


def table(runs: list[Run], tests: dict[Run, dict[str, float]], where: Path) -> list[str]:
    lines = [
        "| method | lr | seed | forwards | validation: before | best (after forwards) | last | test |",
        "|---" * 8 + "|",
    ]
    for run in runs:
        curve = run.curve(where)
        if not curve:
            continue
        top = max(curve, key=lambda e: (e["accuracy"], -e["forwards"]))
        test = tests.get(run)
        lines.append(
            f"| {run.method} | {run.lr:g} | {run.seed} | {curve[-1]['forwards']} | "
            f"{_score(curve[0])} | {_score(top)} ({top['forwards']}) | {_score(curve[-1])} | "
            f"{_score(test) if test else ''} |"
        )
    for method in dict.fromkeys(x.method for x in tests):
        scores = [s["accuracy"] for x, s in tests.items() if x.method == method]
        lines.append(
            f"| {method} | | mean of {len(scores)} | | | | | **{statistics.mean(scores):.3f}** |"
        )
    return lines


def _score(event: dict[str, Any]) -> str:
    loss = event["loss"]
    return f"{event['accuracy']:.3f} ({'not finite' if loss is None else f'{loss:.3f}'})"


def reached(chosen: dict[str, list[Run]], runs: list[Run], where: Path) -> list[str]:
    """Forwards until each method's validation score is MeZO's best of the same seed; 0: never."""
    mezo = [x for x in runs if x.method.startswith("mezo")]
    if not mezo:
        return []
    lines = [
        "Forward passes until validation scores MeZO's best (of all its runs with the same seed):",
        "",
        "| method | lr | seed | score | MeZO's best | after | reached after | quotient |",
        "|---" * 8 + "|",
    ]
    for method in [m for m in chosen if not m.startswith("mezo")]:
        for key, sign in (("accuracy", 1), ("loss", -1)):
            quotients = []
            for run in chosen[method]:
                points = [e for x in mezo if x.seed == run.seed for e in x.curve(where)]
                points = [e for e in points if e["loss"] is not None]
                if not points:
                    continue
                top = max(points, key=lambda e: (sign * e[key], -e["forwards"]))
                curve = [e for e in run.curve(where) if e["loss"] is not None]
                at = next((e for e in curve if sign * e[key] >= sign * top[key]), None)
                quotients.append(top["forwards"] / max(at["forwards"], 1) if at else 0.0)
                lines.append(
                    f"| {method} | {run.lr:g} | {run.seed} | {key} | {top[key]:.3f} | "
                    f"{top['forwards']} | {at['forwards'] if at else 'never'} | "
                    f"{quotients[-1]:.1f} |"
                )
            if quotients:
                middle = f"**{statistics.median(quotients):.1f}**"
                lines.append(f"| {method} | | median | {key} | | | | {middle} |")
    return lines


def curves(runs: list[Run], where: Path, every: int) -> list[str]:
    """Every evaluation of every run, in their order."""
    lines = [
        f"All curves: validation accuracy / loss before, and after every {every} steps.",
        "",
        "| method | lr | seed | every so many forwards | accuracy | loss |",
        "|---" * 6 + "|",
    ]
    for run in runs:
        curve = run.curve(where)
        columns = [
            " ".join("-" if e[key] is None else f"{e[key]:.3f}".removeprefix("0") for e in curve)
            for key in ("accuracy", "loss")
        ]
        lines.append(
            f"| {run.method} | {run.lr:g} | {run.seed} | {every * run.passes} | "
            f"{' | '.join(columns)} |"
        )
    return lines
