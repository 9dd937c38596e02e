"""What a command is pointed at: a run, a checkpoint, an adapter or a base model."""

from __future__ import annotations

from pathlib import Path

from huggingface_hub import hf_hub_download

from zoft.errors import EnvironmentProblem
from zoft.models.adapters import base_of, is_adapter
from zoft.models.storage.fetch import snapshot
from zoft.models.storage.names import split_revision
from zoft.recipe.schema import ModelSection, Recipe
from zoft.runs import checkpoint
from zoft.runs.folder import RunFolder

# Of an adapter's repository: what it tuned, and the tokenizer that it learnt with.
ADAPTER_FILES = (
    "adapter_*.json",
    "adapter_*.safetensors",
    "*token*.json",
    "*.jinja",
    "chat_template*",
    "vocab.*",
    "merges.txt",
    "*.model",
)


def named(target: str, model: ModelSection) -> tuple[ModelSection, str | None]:
    """The base model that `target` names, with the settings of `model`, and the folder of the adapter
    on it if it has one. Raises EnvironmentProblem."""
    where = weights_of(target)
    if not Path(where).exists():
        where = hub_adapter(target) or target
    if is_adapter(where):
        name, revision = base_of(where)
        return model.model_copy(update={"name": name, "revision": revision}), where
    name, revision = split_revision(where)
    if target == model.name:  # the recipe's own base, at the recipe's revision
        revision = revision or model.revision
    return model.model_copy(update={"name": name, "revision": revision}), None


def hub_adapter(name: str) -> str | None:
    """Where the files of an adapter on the Hub (`owner/name`, `owner/name@revision`) lie, fetched if
    need be; None for what is none.

    Why there is nothing under a name is not said here: it is looked for as a model next. Raises
    EnvironmentProblem if an adapter cannot be fetched.
    """
    repository, revision = split_revision(name)
    try:
        hf_hub_download(repository, "adapter_config.json", revision=revision)
    except Exception:  # not there, not an id, no network, no right: many classes
        return None
    return str(snapshot(repository, revision, ADAPTER_FILES, key=""))


def weights_of(target: str) -> str:
    """The folder with a run's newest weights; anything else is a model's or an adapter's name."""
    path = Path(target).expanduser()
    run = RunFolder(path)
    if not run.exists:
        return str(path) if path.exists() else target
    if run.final.is_dir():
        return str(run.final)
    found = checkpoint.find(run.path)
    if not found:
        raise EnvironmentProblem(
            f"{run.path} has neither final/ nor a checkpoint yet: zoft train … --resume auto"
        )
    return str(found[-1])


def recipe_of(target: str) -> Recipe | None:
    """The resolved recipe of the run that `target` is, or lies in; None if it is nothing of a run."""
    path = Path(target).expanduser()
    here = (RunFolder(path), RunFolder(path.parent)) if path.is_dir() else ()
    run = next((folder for folder in here if folder.exists), None)
    return run.previous() if run else None
