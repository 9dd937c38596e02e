"""`zoft replay`: the weights of a run from its base model and its journal, without a forward pass."""

from __future__ import annotations

import time
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path

from zoft.engine.offload.weights import Streamed
from zoft.engine.optimizers.optimizer import Optimizer
from zoft.engine.tail.moving import END
from zoft.errors import EnvironmentProblem, RecipeError
from zoft.models.load import load_tokenizer
from zoft.models.storage.fetch import snapshot
from zoft.models.storage.names import split_revision
from zoft.runs import checkpoint
from zoft.runs import complete as manifest
from zoft.runs.artefact import JOURNAL, START, expected, journal_of, require_whole
from zoft.runs.checksum import UNPROTECTED, protected
from zoft.runs.journal import Entry, Header, read
from zoft.sharing.rebuild import base_of, rebuild, require_known
from zoft.system.signals import Stop, stop_on_signals

TELL_EVERY = 10.0  # seconds between lines of progress


def replay(
    source: str, *, at: int | None = None, out: str | None = None, base: str | None = None
) -> Path:
    """Write the weights that the journal of `source` leads to as Hugging Face files; their folder.

    `source` is a run, an artefact, a journal.jsonl or a Hub repository (perhaps
    with @revision); `at` a step (None: the last);
    `base` the base model, where it is not found by its name. Raises ZoftError.
    """
    journal = _journal(source)
    header, entries = read(journal)
    if not protected(header):
        print(f"checksums: {UNPROTECTED}")
    step = _step(at, header, entries, journal)
    target = Path(out).expanduser() if out else _beside(source, journal) / f"replayed-{step:06d}"
    _require_new(target)
    require_known(header, journal)
    with stop_on_signals("; nothing was written") as stop, ExitStack() as stack:
        section, where = base_of(header, journal, base)
        tokenizer = load_tokenizer(where, section)
        rebuilt = rebuild(header, journal, section, where, target, stack, step)
        checkpoint.require_space(target, rebuilt.result_bytes)
        begun = time.perf_counter()
        _apply(rebuilt.optimizer, entries[:step], stop)
        streamed = rebuilt.weights if isinstance(rebuilt.weights, Streamed) else None
        says, wanted = expected(journal, header, len(entries), step)

        def write(folder: Path) -> None:
            checkpoint.write_model(folder, rebuilt.model, tokenizer, streamed)
            seconds = time.perf_counter() - begun
            print(f"replayed {step} steps in {seconds:.1f} s, files included", flush=True)
            _compare(manifest.weight_hashes(folder), wanted, says, header)

        checkpoint.save(target, write)
    for name, digest in manifest.weight_files(target).items():
        print(f"{name}\n  sha256 {digest}")
    print(f"the weights are those of {says}" if wanted else "nothing here says what they must be")
    print(f"files  {target}")
    return target


def _journal(source: str) -> Path:
    """The journal on this machine; of a Hub repository, with the adapter that it starts from."""
    path = Path(source).expanduser()
    if not path.exists():
        repository, revision = split_revision(source)
        if source.startswith((".", "/", "~")) or repository.count("/") > 1:
            raise EnvironmentProblem(f"there is no {source}")
        wanted = (JOURNAL, f"{START}/*.json", f"{START}/*.safetensors", f"{END}/*.safetensors")
        path = snapshot(repository, revision, wanted, ignored=(), key="")
        if not (path / JOURNAL).is_file():
            raise EnvironmentProblem(f"the repository {source} holds no {JOURNAL}")
    return journal_of(path)


def _beside(source: str, journal: Path) -> Path:
    """Where the result goes: to the run; of a Hub repository, here."""
    local = Path(source).expanduser().exists()
    return journal.parent if local else Path(split_revision(source)[0].rpartition("/")[2])


def _step(at: int | None, header: Header, entries: Sequence[Entry], journal: Path) -> int:
    if at is None or at > len(entries):
        hint = f"; --at {len(entries)} replays these"
        require_whole(journal, header, len(entries), hint)
    if at is not None and not 0 <= at <= len(entries):
        raise RecipeError(f"--at {at}: {journal} holds steps 1 to {len(entries)} (0: the start)")
    return len(entries) if at is None else at


def _require_new(target: Path) -> None:
    if target.exists() and not (target.is_dir() and not any(target.iterdir())):
        raise RecipeError(f"{target} exists; delete it or give another folder with --out")


def _apply(optimizer: Optimizer, entries: Sequence[Entry], stop: Stop) -> None:
    """One sweep for each step that was finite."""
    told = time.perf_counter()
    for entry in entries:
        optimizer.apply(entry.measurement, entry.lr)
        stop.check()
        if time.perf_counter() - told >= TELL_EVERY:
            told = time.perf_counter()
            print(f"step {entry.measurement.step}/{len(entries)}", flush=True)


def _compare(found: dict[str, str], wanted: dict[str, str], says: str, header: Header) -> None:
    """Raises EnvironmentProblem for a file of other bytes than the run's."""
    differing = sorted(name for name in wanted if found.get(name) != wanted[name])
    if differing:
        name = differing[0]
        raise EnvironmentProblem(
            f"{name} came out with sha256 {found.get(name, 'none')[:12]}, by {says} it must be "
            f"{wanted[name][:12]}: nothing was written. The journal is of zoft {header['zoft']}; other "
            "versions of the libraries may also lay out the file otherwise"
        )
