"""Push a run to the Hugging Face Hub: `zoft push`, and the pushes that a run makes by itself."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from huggingface_hub import HfApi, constants, get_token

from zoft.errors import Interrupted, RecipeError, ZoftError, first_line
from zoft.inference.locate import weights_of
from zoft.models.storage.fetch import local_folder
from zoft.recipe.load import load_recipe
from zoft.recipe.schema import Recipe
from zoft.runs.folder import RunFolder, run_of
from zoft.sharing.base_model import base_of
from zoft.sharing.hub.access import look_up_base, require_write_access
from zoft.sharing.hub.payload import Files, What, list_files, require_no_secret
from zoft.sharing.hub.retry import Say, hub_client, no_check
from zoft.sharing.hub.upload import Pushed, size_of, upload
from zoft.system.signals import Stop


def push(
    target: str,
    repo_id: str | None = None,
    overrides: Sequence[str] = (),
    *,
    public: bool = False,
    revision: str | None = None,
    what: What | None = None,
    dry_run: bool = False,
    say: Say = print,
) -> None:
    """Push the run or checkpoint `target` to `repo_id` (None: hub.repo_id of its recipe).

    Its folder is only read. `overrides` change the section `hub` of its recipe. Raises ZoftError.
    """
    run, at = run_of(Path(target).expanduser())
    recipe = _recipe(run, overrides, repo_id, public)
    weights = at or Path(weights_of(str(run.path)))
    base = base_of(recipe, run.manifest().get("base", {}))
    files = list_files(recipe, run, weights, what, base, recipe.hub.repo_id or "")
    if dry_run:
        _tell_plan(files, recipe, revision, say)
        return
    with hub_client():
        pushed = push_run(recipe, run, weights, what=what, revision=revision, say=say)
    say(_told(pushed))


@dataclass
class Pusher:
    """The pushes of a run: after its checkpoints and at its end, if its recipe wants them.

    `repo_id` is the full name; None: nothing is pushed.
    """

    repo_id: str | None = None
    say: Say = print
    stop: Stop = field(default_factory=Stop)

    def at_checkpoint(self, recipe: Recipe, weights: Path) -> None:
        if recipe.hub.push == "checkpoint":
            self._push(recipe, RunFolder(weights.parent), weights)

    def at_end(self, recipe: Recipe, run: RunFolder) -> None:
        if recipe.hub.push != "never":
            self._push(recipe, run, run.final)

    def _push(self, recipe: Recipe, run: RunFolder, weights: Path) -> None:
        """A failure is a line on the screen: the run goes on, and its files are whole."""
        assert self.repo_id is not None
        self.stop.check()
        try:
            with hub_client():
                pushed = _send(
                    recipe, run, weights, self.repo_id, say=self.say, check=self.stop.check
                )
        except Interrupted:
            raise
        except Exception as error:  # whatever it is, the run matters more
            why = str(error) if isinstance(error, ZoftError) else first_line(error)
            again = run.path if weights == run.final else weights
            self.say(f"not pushed, the run is whole: {why}. Later: zoft push {again}")
        else:
            self.say(_told(pushed))


def pusher_for(recipe: Recipe, say: Say, stop: Stop) -> Pusher:
    """Asks for the right to write before anything is computed, and for the base's Hub id.

    Raises EnvironmentProblem or RecipeError.
    """
    hub = recipe.hub
    if hub.push == "never":
        return Pusher()
    assert hub.repo_id is not None
    base_of(recipe, {})
    with hub_client():
        full = require_write_access(
            HfApi(), hub.repo_id, private=hub.private, say=say, check=stop.check
        )
    say(f"pushes to {_address(full)} ({'private' if hub.private else 'public'})")
    return Pusher(full, say, stop)


def _recipe(run: RunFolder, overrides: Sequence[str], repo_id: str | None, public: bool) -> Recipe:
    """The run's own recipe with what the command line says about the Hub."""
    for override in overrides:
        if not override.lstrip("~").startswith("hub."):
            raise RecipeError(f"{override}: a push changes nothing but hub.*")
    more = [*([f"hub.repo_id={repo_id}"] if repo_id else []), *(["hub.private=false"] * public)]
    recipe = load_recipe(run.resolved, [*overrides, *more])
    if recipe.hub.repo_id is None:
        raise RecipeError(f"where to? zoft push {run.path} USER/NAME")
    return recipe


def push_run(
    recipe: Recipe,
    run: RunFolder,
    weights: Path,
    *,
    say: Say,
    check: Callable[[], None] = no_check,
    what: What | None = None,
    revision: str | None = None,
) -> Pushed:
    """Everything that a push does over the network, inside `hub_client`. Raises ZoftError."""
    hub = recipe.hub
    assert hub.repo_id is not None
    full = require_write_access(HfApi(), hub.repo_id, private=hub.private, say=say, check=check)
    return _send(recipe, run, weights, full, say=say, check=check, what=what, revision=revision)


def _send(
    recipe: Recipe,
    run: RunFolder,
    weights: Path,
    repo_id: str,
    *,
    say: Say,
    check: Callable[[], None],
    what: What | None = None,
    revision: str | None = None,
) -> Pushed:
    """To a repository that is there and may be written."""
    api = HfApi()
    named = base_of(recipe, run.manifest().get("base", {}))
    here = local_folder(recipe.model.name) if recipe.hub.base_model else None
    base = look_up_base(api, named, here, say=say, check=check)
    files = list_files(recipe, run, weights, what, base, repo_id)
    require_no_secret(files, get_token())
    message = f"{run.path.resolve().name}: {weights.name}" + (f" ({what})" if what else "")
    return upload(api, repo_id, files, message, revision=revision, say=say, check=check)


def _tell_plan(files: Files, recipe: Recipe, revision: str | None, say: Say) -> None:
    sizes = {name: size_of(content) for name, content in files.items()}
    for name, size in sizes.items():
        say(f"{size:>15,}  {name}")
    hub = recipe.hub
    say(
        f"{sum(sizes.values()):>15,}  bytes in {len(sizes)} files would go to {hub.repo_id} "
        f"({'private' if hub.private else 'public'}, {revision or 'main'})"
    )


def _told(pushed: Pushed) -> str:
    where = f"{_address(pushed.repo_id)} at {pushed.commit[:12]}"
    if not pushed.files:
        return f"nothing to push: all of it is in {where}"
    return f"pushed         {pushed.files} files, to {where}"


def _address(repo_id: str) -> str:
    return f"{constants.ENDPOINT}/{repo_id}"
