"""List the files of a run to upload: those that are named here, with this machine's paths replaced."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from fnmatch import fnmatch
from pathlib import Path
from typing import Literal

from zoft.engine.tail.head import FILE as TAIL
from zoft.engine.tail.moving import END
from zoft.errors import EnvironmentProblem, RecipeError
from zoft.models.adapters import is_adapter
from zoft.recipe.schema import Recipe
from zoft.runs.artefact import JOURNAL, shared_journal
from zoft.runs.folder import RunFolder
from zoft.runs.metrics import Metrics
from zoft.sharing.base_model import Base
from zoft.sharing.hub.redaction import shared_config, shared_header, shared_recipe, without_places
from zoft.sharing.model_card import card

What = Literal["adapter", "model", "journal", "all"]
Files = dict[str, Path | bytes]  # by their path in the repository

WEIGHTS = (
    "adapter_model.safetensors", "model.safetensors", "model-*-of-*.safetensors",
    "model.safetensors.index.json",
)  # fmt: skip
CONFIGS = ("adapter_config.json", "config.json", "generation_config.json")
TOKENIZER = (
    "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json",
    "vocab.json", "vocab.txt", "merges.txt", "tokenizer.model", "spiece.model",
    "sentencepiece.bpe.model", "chat_template.jinja", "chat_template.json",
)  # fmt: skip
# Small JSON that names models or paths; tokenizer.json is a vocabulary, in which "/usr" is a token.
REWRITTEN = (*CONFIGS, "tokenizer_config.json")


def list_files(
    recipe: Recipe, run: RunFolder, weights: Path, what: What | None, base: Base, repo_id: str
) -> Files:
    """Return what goes to `repo_id` of the run, with the weights in `weights` (final/ or a checkpoint).

    `what` None is the adapter or the model, whichever the run tuned. Raises RecipeError for what the
    run has not, EnvironmentProblem for weights that are not there.
    """
    adapter = is_adapter(weights)
    if what in ("adapter", "model") and adapter != (what == "adapter"):
        has, merged = ("an adapter", "; to share it inside its base, merge it first")
        if not adapter:
            has, merged = "a whole model", ""
        raise RecipeError(f"--what {what}: {run.path} holds {has}{merged}")
    text = without_places(shared_recipe(recipe, base), places(run))
    files: Files = {}
    if what != "journal":
        files |= _weights(weights, base)
    if what in ("journal", "all"):
        files |= _journal(run, base)
    step = _step(weights, recipe)
    events = [event for event in Metrics(run.metrics).read() if event["step"] <= step]
    files["README.md"] = card(
        recipe, text, run.manifest(), events, base,
        adapter=adapter, repo_id=repo_id, step=step, journal_only=what == "journal",
    ).encode()  # fmt: skip
    files["recipe.yaml"] = text.encode()
    lines = "".join(json.dumps(event) + "\n" for event in events)
    files["metrics.jsonl"] = without_places(lines, places(run)).encode()
    for plot in (weights / "loss.png", run.path / "loss.png"):
        if plot.is_file():
            files["loss.png"] = plot
    return dict(sorted(files.items()))


def require_no_secret(files: Mapping[str, Path | bytes], token: str | None) -> None:
    """Raises EnvironmentProblem if the login stands in one of the texts that would go up."""
    for name, content in files.items():
        if token and isinstance(content, bytes) and token.encode() in content:
            raise EnvironmentProblem(f"{name} contains your Hub token: nothing was pushed")


def places(run: RunFolder) -> list[Path]:
    """Folders of this machine that no text may name."""
    return [run.path.resolve(), run.path.resolve().parent, Path.cwd(), Path.home()]


def _weights(folder: Path, base: Base) -> Files:
    files: Files = {}
    for path in sorted(folder.iterdir()):
        if not any(fnmatch(path.name, name) for name in (*WEIGHTS, *CONFIGS, *TOKENIZER)):
            continue
        files[path.name] = _config(path, base) if path.name in REWRITTEN else path
    if not any(fnmatch(name, pattern) for name in files for pattern in WEIGHTS[:3]):
        raise EnvironmentProblem(f"{folder} holds no weights")
    return files


def _config(path: Path, base: Base) -> bytes:
    return shared_config(path.read_text(encoding="utf-8"), base).encode()


def _journal(run: RunFolder, base: Base) -> Files:
    """The journal as an artefact and, where there is one, the adapter that the run began with."""
    files: Files = {
        JOURNAL: shared_journal(run.journal, lambda header: shared_header(header, base))
    }
    if (run.start / TAIL).is_file():
        files[f"start/{TAIL}"] = run.start / TAIL
    elif run.start.is_dir():
        files["start/adapter_model.safetensors"] = run.start / "adapter_model.safetensors"
        files["start/adapter_config.json"] = _config(run.start / "adapter_config.json", base)
    if (end := run.path / END / TAIL).is_file():
        files[f"{END}/{TAIL}"] = end
    return files


def _step(weights: Path, recipe: Recipe) -> int:
    match = re.fullmatch(r"checkpoint-(\d+)", weights.name)
    return int(match[1]) if match else recipe.train.steps
