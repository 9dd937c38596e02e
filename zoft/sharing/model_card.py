"""The model card of a run: what the Hub shows, filters by and ranks, and what a reader wants to know."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from huggingface_hub import EvalResult, ModelCardData

from zoft.recipe.schema import Recipe
from zoft.recipe.sections.data import DataSource, listed
from zoft.runs.metrics import SCORES, Event
from zoft.sharing.base_model import Base, is_local
from zoft.system.host_memory import gib

LIMITS = """\
- Zeroth-order tuning moves a model along few directions for each step: expect it to do the task it was
  tuned for, with the prompt of the recipe, and little else better than its base.
- What the base model gets wrong, and its biases, are still in here; nothing was done about safety.
- The scores above are of one run with one seed, on the rows named beside them.
"""


def card(
    recipe: Recipe,
    recipe_text: str,
    manifest: Mapping[str, Any],
    events: Sequence[Event],
    base: Base,
    *,
    adapter: bool,
    repo_id: str | None = None,
    step: int | None = None,
    journal_only: bool = False,
) -> str:
    """README.md of a run's weights at `step` (None: its end).

    `manifest` is run.json, `events` are those of metrics.jsonl. Of `recipe` nothing but settings is
    shown; `recipe_text` is shown as it is, so it must name no local path.
    """
    step = recipe.train.steps if step is None else step
    title = repo_id or Path(recipe.output_dir or "run").name
    scores = _scores(recipe, manifest, events, step)
    data = _metadata(recipe, base, title, _results(scores, step), adapter=adapter)
    shown = f"[{base.name}](https://huggingface.co/{base.name})" if base.name else "its base model"
    if base.name and base.revision:
        shown += f" at `{base.revision}`"
    method = "LoRA" if recipe.tune.method == "lora" else recipe.tune.method
    what = f"A {method} adapter for" if adapter else "A tuned copy of"
    if journal_only:
        what = "The journal of a run that tuned"
    parts = [
        f"---\n{data.to_yaml()}\n---",
        f"# {title}",
        f"{what} {shown}, tuned with zoft: forward passes only, no back-propagation.",
        "## Scores",
        _table(scores, step),
        "## How to load it",
        _loading(title if repo_id else "PATH/TO/THIS/FOLDER", adapter, journal_only),
        "## How it was made",
        _facts(recipe, manifest, step),
        f"The recipe, `recipe.yaml` (data files are named without their folders):\n\n"
        f"```yaml\n{recipe_text.rstrip()}\n```",
        "## Limits",
        LIMITS.rstrip(),
    ]
    return "\n\n".join(parts) + "\n"


def _metadata(
    recipe: Recipe, base: Base, title: str, results: list[EvalResult], *, adapter: bool
) -> ModelCardData:
    """The card's first part, in YAML: what the Hub filters by."""
    license: dict[str, Any] = dict(base.license)
    kinds = [recipe.optimizer.name, *([recipe.tune.method] if adapter else [])]
    return ModelCardData(
        base_model=base.name,
        base_model_relation=("adapter" if adapter else "finetune") if base.name else None,
        base_model_revision=base.revision,
        datasets=sorted({s.path for _, s in _sources(recipe) if not is_local(s.path)}) or None,
        library_name="peft" if adapter else "transformers",
        pipeline_tag="text-generation",
        tags=["zoft", "zeroth-order", *kinds],
        model_name=title,
        eval_results=results or None,
        **license,
    )


@dataclass(frozen=True, slots=True)
class _Score:
    """A set that was scored: its name and (first) source, before tuning (where it was) and after."""

    name: str
    source: DataSource
    before: Event | None
    after: Event


def _sources(recipe: Recipe) -> list[tuple[str, DataSource]]:
    data = recipe.data
    named = (("train", data.train), ("eval", data.eval), ("test", data.test))
    return [(name, source) for name, sources in named for source in listed(sources)]


def _scores(
    recipe: Recipe, manifest: Mapping[str, Any], events: Sequence[Event], step: int
) -> list[_Score]:
    evals = {e["step"]: e for e in events if e["event"] == "eval"}
    found = []
    if recipe.data.eval and (after := evals.get(step)):
        found.append(_Score("eval", listed(recipe.data.eval)[0], evals.get(0), after))
    final = manifest.get("final") or {}
    if recipe.data.test and final.get("set") == "test" and final.get("step") == step:
        found.append(_Score("test", listed(recipe.data.test)[0], None, final))
    return found


def _results(scores: Sequence[_Score], step: int) -> list[EvalResult]:
    """model-index: each metric after tuning, and zero-shot beside it."""
    return [
        EvalResult(
            task_type="text-generation",
            dataset_type="local" if is_local(score.source.path) else score.source.path,
            dataset_name=Path(score.source.path).name,
            dataset_config=score.source.name,
            dataset_split=score.source.split or score.name,
            metric_type=metric,
            metric_name=f"{metric}, {when}",
            metric_value=round(event[metric], 4),
        )
        for score in scores
        for metric in SCORES
        for when, event in ((f"after {step} steps", score.after), ("zero-shot", score.before))
        if event and event.get(metric) is not None
    ]


def _table(scores: Sequence[_Score], step: int) -> str:
    if not scores:
        return "No set was scored."
    rows = [f"| set | rows | zero-shot | after {step:,} steps |", "|---|---|---|---|"]
    rows += [
        f"| {s.name}: {Path(s.source.path).name} | {s.after['rows']:,} | {_words(s.before)} "
        f"| {_words(s.after)} |"
        for s in scores
    ]
    return "\n".join(rows)


def _words(event: Event | None) -> str:
    if event is None:
        return "not scored"
    accuracy = f"accuracy {event['accuracy']:.3f}, " if "accuracy" in event else ""
    loss = "not finite" if event["loss"] is None else f"{event['loss']:.4f}"
    return f"{accuracy}loss {loss}"


def _loading(place: str, adapter: bool, journal_only: bool) -> str:
    if journal_only:
        return (
            "It holds no weights: `journal.jsonl` and the base model are the weights, bit for bit.\n\n"
            f"```bash\nzoft replay {place}\n```"
        )
    if adapter:
        return (
            "```python\nfrom peft import AutoPeftModelForCausalLM\n"
            "from transformers import AutoTokenizer\n\n"
            f'model = AutoPeftModelForCausalLM.from_pretrained("{place}")  # fetches the base, too\n'
            f'tokenizer = AutoTokenizer.from_pretrained("{place}")\n```'
        )
    return (
        "```python\nfrom transformers import AutoModelForCausalLM, AutoTokenizer\n\n"
        f'model = AutoModelForCausalLM.from_pretrained("{place}")\n'
        f'tokenizer = AutoTokenizer.from_pretrained("{place}")\n```'
    )


def _facts(recipe: Recipe, manifest: Mapping[str, Any], step: int) -> str:
    optimizer, versions = recipe.optimizer, manifest.get("versions", {})
    coded = recipe.model.quantization
    peak, seconds = manifest.get("peak_memory_bytes"), manifest.get("seconds")
    machine = [manifest.get("device"), manifest.get("cpu"), f"threads: {manifest.get('threads')}"]
    rows = {
        "algorithm": f"{optimizer.TITLE} ([arXiv {optimizer.CITATION}](https://arxiv.org/abs/{optimizer.CITATION}))",
        "tuned": {"full": "all weights", "lora": f"LoRA, rank {recipe.tune.r}"}.get(
            recipe.tune.method, recipe.tune.method
        ),
        "steps, batch": f"{step:,} of {recipe.train.steps:,}, {recipe.train.batch_size} rows",
        "rate, perturbation": f"{optimizer.lr} ({optimizer.schedule}), {optimizer.perturbation}",
        "seed": str(recipe.seed),
        "types": f"weights {recipe.model.dtype}, computed in {recipe.model.compute_dtype}"
        + ("" if coded == "none" else f", base in {coded}"),
        "hardware": ", ".join(str(part) for part in machine if part),
        "peak memory": gib(peak) if peak else "",
        "wall time": f"{seconds:,.0f} s" if seconds and step == recipe.train.steps else "",
        "versions": ", ".join(f"{name} {version}" for name, version in versions.items()),
    }
    lines = [f"| {name} | {value} |" for name, value in rows.items() if value]
    return "\n".join(["| | |", "|---|---|", *lines])
