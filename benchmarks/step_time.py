"""Step time: zoft beside two plain passes, MeZO's procedure, ZO-Adam and AdamW.

    python benchmarks/step_time.py [--repeats 12] [--append]

In each repeat every contestant takes one step on the same rows, in an order that turns; all live in one
process. A plain pass is an untouched transformers model, stored in the compute type, with the same lean
head as zoft. zoft's step measures both probes, writes the journal's line and updates every weight.
What MeZO's procedure is stands in peers.py. The median comes with the quartiles; a ratio is taken
repeat by repeat. Raw seconds: runs/bench/step_time.jsonl; a second call goes on from there.
"""

from __future__ import annotations

import gc
import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from machine import Log, arguments, ratios, report, spread
from peers import AdamW, MezoProcedure, ZoAdam, gradients, inference, mezo_loss, mezo_rows
from subject import DENSE, RANK1, RATE, Step, batch_of, journal, recipe_of, rows_of

from zoft.data.examples import Choice, TextExample, length
from zoft.data.order import Order
from zoft.engine.objectives.objective import objective_for
from zoft.models.adapters import attach_adapter
from zoft.models.load import load_model
from zoft.models.storage.fetch import local_safetensors
from zoft.recipe.schema import Recipe
from zoft.recipe.sections.tune import TuneSection
from zoft.runs.journal import Journal
from zoft.system.host_memory import keep_freed_memory

VARIANTS = (DENSE, RANK1, replace(DENSE, paired=True), replace(RANK1, paired=True))
ZOFT = {probes.name: probes for probes in VARIANTS}
DEFAULT = replace(RANK1, paired=True).name  # what `auto` comes to for full tuning
WARM = 2  # repeats that are not kept: kernels load, arenas grow


@dataclass(frozen=True)
class Work:
    """The rows of one repeat: at random, and of like lengths as zoft groups them."""

    choices: Sequence[Choice]
    texts: Sequence[TextExample]
    grouped: Sequence[Choice]


def main() -> None:
    """Measure both compute types and print three tables."""
    parser = arguments(__doc__, batch=16, repeats=12)
    parser.add_argument("--recipe", default="quickstart")
    parser.add_argument("--dtypes", nargs="+", default=["float32", "bfloat16"])
    a = parser.parse_args()
    keep_freed_memory()  # as zoft does; it serves every contestant
    recipe = recipe_of(a.recipe)
    log = Log("step_time", recipe=recipe.model_dump(mode="json"), batch=a.batch)
    for dtype in a.dtypes:
        missing = [i for i in range(a.repeats) if not log.find(dtype=dtype, repeat=i)]
        if missing:
            works = _works(recipe, a.batch, a.repeats + WARM)
            with journal() as lines:
                _measure(dtype, recipe, works, missing, log, lines)
            gc.collect()
    title = f"Step time, batch {a.batch}, all weights, scalar moments, {a.repeats} repeats"
    report(title, list(_tables(log, a.dtypes, a.repeats)), to_file=a.append)


def _works(recipe: Recipe, batch: int, count: int) -> list[Work]:
    choices, texts = rows_of(recipe)
    lengths = np.array([length(x) for x in choices])
    plain = Order(0, batch, len(choices))
    grouped = Order(0, batch, len(choices), lengths)
    works = []
    for step in range(1, count + 1):
        rows = plain.rows(step)
        works.append(
            Work(
                [choices[i] for i in rows],
                [texts[i] for i in rows],
                [choices[i] for i in grouped.rows(step)],
            )
        )
    return works


def _measure(
    dtype: str, recipe: Recipe, works: list[Work], missing: list[int], log: Log, lines: Journal
) -> None:
    steps: dict[str, Step] = {}
    runners = _contestants(dtype, recipe, lines, steps)
    names = list(runners)
    for turn, i in enumerate([-1 - x for x in range(WARM)] + missing):
        work, seconds = works[i], {}
        for name in names[turn % len(names) :] + names[: turn % len(names)]:
            run = runners[name](work)  # the batch is made here, the clock runs below
            begun = time.perf_counter()
            run()
            seconds[name] = round(time.perf_counter() - begun, 5)
        if i < 0:
            continue
        update = {f"update {name}": round(s.update_seconds, 5) for name, s in steps.items()}
        tokens = {
            "tokens random": sum(length(x) for x in work.choices),
            "tokens grouped": sum(length(x) for x in work.grouped),
        }
        log.add(dtype=dtype, repeat=i, **tokens, **seconds, **update)


def _contestants(
    dtype: str, recipe: Recipe, lines: Journal, steps: dict[str, Step]
) -> dict[str, Callable[[Work], Callable[[], Any]]]:
    """Name -> from a repeat's rows to the step that is timed."""
    where = local_safetensors(recipe.model.name, recipe.model.revision)
    stored: torch.dtype = getattr(torch, dtype)
    tuned = load_model(where, recipe.model, dtype=torch.float32, device="cpu").model
    plain = load_model(where, recipe.model, dtype=stored, device="cpu").model
    choice, lm = objective_for("choice"), objective_for("lm")
    steps.update({name: Step(tuned, dtype, probes, lines) for name, probes in ZOFT.items()})
    mezo = MezoProcedure(plain)
    found: dict[str, Callable[[Work], Callable[[], Any]]] = {}

    def passes(work: Work) -> Callable[[], Any]:
        batch = batch_of(choice, work.choices)
        return lambda: [inference(plain, batch) for _ in range(2)]

    def zoft(name: str, kind: str) -> Callable[[Work], Callable[[], Any]]:
        objective = lm if kind == "lm" else choice

        def prepare(work: Work) -> Callable[[], Any]:
            rows = {"choice": work.choices, "lm": work.texts, "grouped": work.grouped}[kind]
            batch = batch_of(objective, rows)  # type: ignore[arg-type]
            return lambda: steps[name](objective, batch)

        return prepare

    def walked(method: MezoProcedure, classification: bool) -> Callable[[Work], Callable[[], Any]]:
        def prepare(work: Work) -> Callable[[], Any]:
            rows = mezo_rows(work.choices, classification=classification)
            return lambda: method.step(lambda: mezo_loss(plain, rows), seed=1, lr=RATE)

        return prepare

    def first_order(model: torch.nn.Module, only: str) -> Callable[[Work], Callable[[], Any]]:
        with gradients(model, only=only):
            method = AdamW(model, RATE)

        def prepare(work: Work) -> Callable[[], Any]:
            batch = batch_of(choice, work.choices)

            def run() -> None:
                with gradients(model, only=only):
                    method.step(batch)

            return run

        return prepare

    found["two passes"] = passes
    for name, probes in ZOFT.items():
        found[f"{name} lm"], found[name] = zoft(name, "lm"), zoft(name, "choice")
        if probes.structure == "rank1":
            found[f"{name} grouped"] = zoft(name, "grouped")
    found["mezo lm"], found["mezo choice"] = walked(mezo, False), walked(mezo, True)
    size = sum(p.numel() for p in plain.parameters())
    if _free() > 40 * size:  # moments of both Adams 16 bytes, gradients 4, activations
        found["zo-adam lm"] = walked(ZoAdam(plain), False)
        found["adamw"] = first_order(plain, "")
        lora = load_model(where, recipe.model, dtype=stored, device="cpu").model
        adapted = attach_adapter(lora, TuneSection(method="lora"), 0)
        found["adamw lora"] = first_order(adapted, "lora_")
    return found


def _free() -> int:
    return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def _tables(log: Log, dtypes: list[str], repeats: int) -> list[str]:
    one = ["| compute | directions | two passes | step | of it update | step / two passes |"]
    two = ["| compute | loss | directions | step | MeZO's procedure | MeZO / zoft |"]
    three = ["| compute | peer | loss | seconds | peer / zoft's default step |"]
    for table, columns in ((one, 6), (two, 6), (three, 5)):
        table.append("|---" * columns + "|")
    for dtype in dtypes:
        rows = [x for x in log.find(dtype=dtype) if x["repeat"] < repeats]

        def median(column: str, digits: int = 3, rows: list[dict[str, Any]] = rows) -> str:
            return spread([x[column] for x in rows if column in x], digits).split("**")[1]

        for name in ZOFT:
            one.append(
                f"| {dtype} | {name} | {median('two passes')} s | {median(name)} s | "
                f"{median(f'update {name}')} s | {spread(ratios(rows, name, 'two passes'))} |"
            )
        for loss in ("lm", "choice"):
            for name in ZOFT:
                mine, theirs = f"{name} lm" if loss == "lm" else name, f"mezo {loss}"
                two.append(
                    f"| {dtype} | {loss} | {name} | {median(mine)} s | {median(theirs)} s | "
                    f"{spread(ratios(rows, theirs, mine), 2)} |"
                )
        for name in [name for name, probes in ZOFT.items() if probes.structure == "rank1"]:
            for x in rows:  # seconds per 1,000 tokens that are no padding, options counted once
                x["mine"] = 1e3 * x[f"{name} grouped"] / x["tokens grouped"]
                x["theirs"] = 1e3 * x["mezo choice"] / x["tokens random"]
            two.append(
                f"| {dtype} | choice, per 1,000 tokens, like lengths / random | {name} | "
                f"{median('mine')} s | {median('theirs')} s | "
                f"{spread(ratios(rows, 'theirs', 'mine'), 2)} |"
            )
        for peer, loss in (("zo-adam lm", "lm"), ("adamw", "choice"), ("adamw lora", "choice")):
            if any(peer in x for x in rows):
                mine = f"{DEFAULT} lm" if loss == "lm" else DEFAULT
                what = peer.removesuffix(" lm")
                three.append(
                    f"| {dtype} | {what} | {loss} | {median(peer)} s | "
                    f"{spread(ratios(rows, peer, mine), 2)} |"
                )
    return [*one, "", *two, "", *three]


if __name__ == "__main__":
    main()
