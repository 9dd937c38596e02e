"""A run up to its first step, without a folder: what `zoft range` and `zoft validate` look at."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory

from zoft.data.sets import Data, load_data
from zoft.engine.build import order_for
from zoft.models.storage.fetch import make_cache_folder
from zoft.planning.out_of_memory import memory_explained
from zoft.planning.resolve import resolve, with_data
from zoft.recipe.load import load_recipe
from zoft.recipe.resolved import Resolved
from zoft.runs.folder import RunFolder
from zoft.system.signals import stop_on_signals
from zoft.training.load import base_files, build_engine, choose_placement, load_model
from zoft.training.preflight import check_probes
from zoft.training.trainer import Trainer
from zoft.training.warm_start import tokenizer_for, warm_start


@contextmanager
def trial(source: str, overrides: Sequence[str]) -> Iterator[Trainer]:
    """The trainer that a run of this recipe begins with; its `check` raises after a signal.

    What is loaded is printed. Raises ZoftError, also for what lacks memory inside.
    """

    def variant(*more: str) -> Resolved:
        return resolve(warm_start(load_recipe(source, [*overrides, *more])))

    recipe = variant()
    with stop_on_signals() as stop, memory_explained(recipe, variant) as explained:
        files = base_files(recipe, print)
        tokenizer = tokenizer_for(recipe, files)
        data = load_data(recipe, tokenizer, names=("train",), say=print, check=stop.check)
        explained.sets = {**data.examples}
        with dry_run(with_data(recipe, data), files, data, print, stop.check) as trainer:
            yield trainer


@contextmanager
def dry_run(
    recipe: Resolved,
    files: Path,
    data: Data,
    say: Callable[[str], None],
    check: Callable[[], None],
) -> Iterator[Trainer]:
    """The trainer that such a run begins with, its probes checked and `paired` settled.

    Streamed blocks that would change lie in the cache folder while it lasts. Raises as a run does that
    cannot begin.
    """
    recipe, place = choose_placement(recipe, data, say)
    examples = data.examples["train"]
    streams = place.residency != "device"
    with TemporaryDirectory(dir=make_cache_folder() if streams else None) as folder:
        run = RunFolder(Path(folder))
        model = load_model(recipe, run, files, place, None, resumed=False)
        engine = build_engine(recipe, run, model, data, place, None, say)
        with closing(engine):
            trainer = Trainer(recipe, engine, examples, order_for(recipe, examples), check)
            paired = check_probes(trainer, place.spare, say)
            yield replace(trainer, engine=engine.with_pairing(paired))
