"""`zoft plan`: a recipe's plan on the screen, or as JSON."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from zoft.errors import OutOfMemory
from zoft.footprint import Footprint
from zoft.plan_tables import show
from zoft.planning import Plan, make_plan


def plan(source: str, overrides: Sequence[str] = (), *, as_json: bool = False) -> None:
    """Print the plan of a recipe. Raises OutOfMemory, after the plan, if nothing fits; ZoftError."""
    made = make_plan(source, overrides)
    if as_json:
        print(json.dumps(in_json(made), indent=2))
    else:
        show(made)
    if made.problem:
        raise OutOfMemory(made.problem)


def in_json(made: Plan) -> dict[str, Any]:
    """The plan as numbers and text; bytes and seconds."""

    def memory(found: Footprint) -> dict[str, Any]:
        return {**asdict(found), "device": found.device, "host": found.host, "disk": found.disk}

    return {
        "recipe": made.recipe.model_dump(mode="json"),
        "budgets": {"device": made.device_budget, "host": made.host_budget},
        "data_known": made.shape.known,
        "chosen": memory(made.footprint),
        "why": made.why,
        "problem": made.problem,
        "residencies": [memory(found) for found in made.others],
        "estimated_seconds": asdict(made.times) if made.times else None,
        "untimed": made.untimed,
        "diffusion": asdict(made.diffusion) if made.diffusion else None,
        "alternatives": [
            {
                "overrides": x.overrides,
                "fits": x.fits,
                "device": x.footprint.device,
                "host": x.footprint.host,
                "disk": x.footprint.disk,
            }
            for x in made.alternatives
        ],
        "first_order": asdict(made.first_order) if made.first_order else None,
    }
