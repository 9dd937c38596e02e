"""Find the rows that a recipe names: a file, a folder of files, or a set on the Hub."""

from __future__ import annotations

import difflib
import logging
import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from zoft.data.files import EVERY, READERS, Check, Row, never, one_line, read_file, without_nulls
from zoft.errors import DataError, EnvironmentProblem
from zoft.recipe.sections.data import DataSource


@dataclass(frozen=True)
class Rows:
    """A data set in memory, in its own order. Iterating gives one dict per row."""

    rows: list[Row]

    def __len__(self) -> int:
        return len(self.rows)

    def __iter__(self) -> Iterator[Row]:
        return iter(self.rows)


def load_rows(source: DataSource, check: Check = never, needed: int | None = None) -> Rows:
    """Read a data source; a stream without a limit ends after the `needed` rows.

    `check` is called every few hundred rows, and may raise. Raises DataError for what is missing,
    broken or empty, and EnvironmentProblem where the Hub cannot be reached.
    """
    path = Path(source.path).expanduser()
    if path.is_symlink() and not path.exists():
        raise DataError(f"{path}: a link to {path.readlink()}, where there is nothing")
    if source.streaming and path.exists():
        raise DataError(f"{path}: `streaming` is for sets on the Hub; remove it")
    if path.is_dir():
        rows = [row for file in files_of(path, source) for row in read_file(file, check)]
    elif path.exists():
        rows = read_file(checked(path, source), check)
    elif looks_local(source.path):
        raise DataError(missing(path))
    else:
        rows = read_hub(source, check, needed)
    if not rows:
        raise DataError(f"{source.path}: holds no rows")
    return Rows(rows[: source.limit])


def checked(file: Path, source: DataSource) -> Path:
    """The file itself, if it is of a kind that can be read and nothing contradicts it."""
    if file.suffix.lower() not in READERS:
        packed = file.suffix.lower() in (".gz", ".zst", ".xz", ".bz2", ".zip")
        way_out = "; unpack it" if packed else ""
        raise DataError(f"{file}: expected a file that ends in {', '.join(READERS)}{way_out}")
    if source.split or source.name:
        raise DataError(f"{file}: a file has no `split` and no `name`; remove them")
    return file


def files_of(folder: Path, source: DataSource) -> list[Path]:
    """The files of one split of a folder: `train.jsonl`, `train-00000-of-00002.parquet`, ...

    Without `split` there must be only one, lest training rows and test rows be mixed unnoticed.
    """
    if source.name:
        raise DataError(f"{folder}: `name` is for sets on the Hub; name the subfolder in `path`")
    if any((folder / name).is_file() for name in ("dataset_info.json", "dataset_dict.json")):
        raise DataError(
            f"{folder}: Arrow files, as save_to_disk writes them; write them again with to_parquet"
        )
    splits: dict[str, list[Path]] = {}
    for file in sorted(folder.iterdir()):
        if file.suffix.lower() in READERS and not file.name.startswith("."):
            splits.setdefault(re.sub(r"[-_.]?\d+(-of-\d+)?$", "", file.stem), []).append(file)
    if not splits:
        below = [sub.name for sub in sorted(folder.iterdir()) if sub.is_dir()]
        way_out = f"; name a folder in it: {', '.join(below[:5])}" if below else ""
        raise DataError(f"{folder}: holds no file that ends in {', '.join(READERS)}{way_out}")
    found = splits[one_split(str(folder), source.split, list(splits))]
    if len({file.suffix.lower() for file in found}) > 1:
        names = ", ".join(file.name for file in found[:5])
        raise DataError(
            f"{folder}: several kinds of files, perhaps of the same rows; name one: {names}"
        )
    return found


def read_hub(source: DataSource, check: Check, needed: int | None) -> list[Row]:
    """Download (or take from the cache) one split of a set on the Hub, or stream its first rows."""
    import datasets
    from datasets.exceptions import DatasetNotFoundError

    named = f"{source.path} on the Hugging Face Hub"
    try:
        with quiet():
            splits = datasets.get_dataset_split_names(source.path, source.name)
            # A split may be a slice, train[:10%], which only the library understands.
            sliced = bool(re.search(r"[\[+]", source.split or ""))
            split = source.split if sliced else one_split(named, source.split, splits)
            if source.streaming:
                most = source.limit or needed
                if most is None or sliced:
                    raise DataError(
                        f"{named}: a stream needs a limit, and a split without brackets"
                    )
                stream = datasets.load_dataset(
                    source.path, source.name, split=split, streaming=True
                )
                return taken(stream.take(most), check)
            table = datasets.load_dataset(source.path, source.name, split=split)
    except DatasetNotFoundError as error:
        if "gated" in str(error):
            raise EnvironmentProblem(f"{named}: gated; accept its terms and log in") from error
        hint = "not found, nor is there such a file (a private set needs a login)"
        raise DataError(f"{named}: {hint}") from error
    except OSError as error:
        raise EnvironmentProblem(f"{named}: cannot be fetched ({one_line(error)})") from error
    except (ValueError, RuntimeError, datasets.exceptions.DatasetsError) as error:
        raise DataError(f"{named}: {one_line(error)}") from error
    return taken(table.select(range(min(source.limit or len(table), len(table)))), check)


def taken(table: Iterable[Row], check: Check) -> list[Row]:
    """All rows of a table or stream, in its order."""
    rows: list[Row] = []
    for row in table:
        rows.append(without_nulls(dict(row)))
        if len(rows) % EVERY == 0:
            check()
    return rows


def one_split(where: str, wanted: str | None, splits: list[str]) -> str:
    """The split that is asked for, or the only one."""
    if wanted is None and len(splits) == 1:
        return splits[0]
    if wanted is None:
        raise DataError(f"{where}: `split` must choose one of {', '.join(sorted(splits))}")
    if wanted not in splits:
        raise DataError(f"{where}: no split {wanted!r}; there are {', '.join(sorted(splits))}")
    return wanted


def looks_local(path: str) -> bool:
    """Whether a name can only be a path: Hub ids are `name` or `owner/name` without suffix."""
    return path.startswith((".", "/", "~")) or path.count("/") > 1 or Path(path).suffix in READERS


def missing(path: Path) -> str:
    """What to say about a path that does not exist: the nearest names beside where it should be."""
    if any(mark in path.name for mark in "*?"):
        return f"{path}: no such file; a folder stands for its files: {path.parent}"
    if str(path).startswith("$"):
        return f"{path}: no such file; a variable is written ${{env:NAME}}"
    beside = sorted(p.name for p in path.parent.iterdir()) if path.parent.is_dir() else []
    if near := difflib.get_close_matches(path.name, beside, n=3, cutoff=0.5):
        return f"{path}: no such file; did you mean {' or '.join(near)}?"
    return f"{path}: no such file" + ("" if path.parent.is_dir() else f", nor folder {path.parent}")


@contextmanager
def quiet() -> Iterator[None]:
    """Keep the libraries' progress bars and retry messages off the terminal."""
    import datasets

    bars = datasets.are_progress_bars_disabled()
    loggers = [logging.getLogger(name) for name in ("datasets", "huggingface_hub")]
    levels = [logger.level for logger in loggers]
    datasets.disable_progress_bars()
    for logger in loggers:
        logger.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        if not bars:
            datasets.enable_progress_bars()
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
