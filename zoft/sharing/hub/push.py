"""Push a run to the Hugging Face Hub: `zoft push`, and the pushes that a run makes by itself."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path

from huggingface_hub import HfApi, constants, get_token

from zoft.errors import Interrupted, RecipeError, ZoftError, disk_words, first_line
from zoft.inference.locate import weights_of
from zoft.models.storage.fetch import local_folder
from zoft.recipe.load import load_recipe
from zoft.recipe.schema import Recipe
from zoft.runs.folder import RunFolder, run_of
from zoft.sharing.base_model import base_of
from zoft.sharing.hub.access import look_up_base, require_write_access
from zoft.sharing.hub.beside import PLACE, Beside
from zoft.sharing.hub.payload import Files, What, list_files, require_no_secret
from zoft.sharing.hub.retry import Say, hub_client, no_check
from zoft.sharing.hub.upload import Pushed, size_of, upload
from zoft.system.atomic_io import delete
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
    """The pushes of a run: beside it after its checkpoints, and at its end, if its recipe wants them.

    `repo_id` is the full name; None: nothing is pushed.
    """

    repo_id: str | None = None
    say: Say = print
    stop: Stop = field(default_factory=Stop)
    beside: Beside = field(default_factory=Beside)

    def at_checkpoint(self, recipe: Recipe, weights: Path) -> None:
        """Begin to push the checkpoint, or let it wait; a failure is a warning."""
        if recipe.hub.push != "checkpoint":
            return
        run = RunFolder(weights.parent)
        try:
            self.beside.add(weights, lambda files: self._push(recipe, run, files, again=weights))
        except OSError as error:
            self._not_pushed(disk_words(error), weights)

    def at_end(self, recipe: Recipe, run: RunFolder) -> None:
        """Push the result, after what is still under way."""
        if recipe.hub.push != "never":
            self.wait()
            self._push(recipe, run, run.final, again=run.path)

    def wait(self) -> None:
        """Wait for the pushes beside the run. Raises Interrupted."""
        if names := [folder.name for folder in self.beside.waiting]:
            self.say(f"waiting for the upload of {' and '.join(names)} ...")
            self.beside.wait(self.stop.check)

    def leave(self, run: RunFolder) -> None:
        """Wait no longer: say what is not up, and no more after that."""
        for folder in self.beside.waiting:
            self._not_pushed("it was not waited for", folder)
        self.say = _nothing
        delete(run.path / PLACE)

    def _push(self, recipe: Recipe, run: RunFolder, weights: Path, again: Path) -> None:
        """A failure is a line on the screen: the run goes on, and its files are whole."""
        assert self.repo_id is not None
        self.stop.check()
        try:
            with hub_client() if weights == run.final else nullcontext():
                pushed = _send(
                    recipe, run, weights, self.repo_id, say=self._tell, check=self.stop.check
                )
        except Interrupted:
            raise
        except Exception as error:  # whatever it is, the run matters more
            why = str(error) if isinstance(error, ZoftError) else first_line(error)
            self._not_pushed(why, again)
        else:
            self.say(_told(pushed))

    def _tell(self, line: str) -> None:
        self.say(line)  # as it is then: a thread that was left is silent

    def _not_pushed(self, why: str, again: Path) -> None:
        there = again if again.is_dir() else again.parent  # a checkpoint may be deleted by now
        self.say(f"not pushed, the run is whole: {why}. Later: zoft push {there}")


@contextmanager
def pushing(recipe: Recipe, say: Say, stop: Stop) -> Iterator[Pusher]:
    """Yield what pushes during a run. Asks for the right to write before anything is computed, and for
    the base's Hub id. An end other than by a signal waits for what is under way.

    Raises EnvironmentProblem or RecipeError.
    """
    hub = recipe.hub
    if hub.push == "never":
        yield Pusher()
        return
    assert hub.repo_id is not None
    base_of(recipe, {})
    with hub_client():
        full = require_write_access(
            HfApi(), hub.repo_id, private=hub.private, say=say, check=stop.check
        )
    say(f"pushes to {_address(full)} ({'private' if hub.private else 'public'})")
    pusher = Pusher(full, say, stop)
    # The client's settings are the program's: a thread cannot have its own.
    with hub_client() if hub.push == "checkpoint" else nullcontext():
        try:
            yield pusher
        except Interrupted:
            raise
        except Exception:
            pusher.wait()
            raise
        finally:
            pusher.leave(RunFolder(Path(recipe.output_dir or "")))


def _nothing(_line: str) -> None:
    pass


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
