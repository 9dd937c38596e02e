"""Read rows from JSONL, JSON, CSV and Parquet files; what is broken is named by file and line."""

from __future__ import annotations

import codecs
import csv
import io
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from zoft.errors import DataError
from zoft.recipe.yaml import TYPOGRAPHIC

Row = dict[str, Any]
Check = Callable[[], None]  # raises Interrupted if the run is to stop

# What files that are no text begin with, and what to do about them.
STARTS = (
    (codecs.BOM_UTF16_LE, "it is UTF-16: convert it, iconv -f UTF-16 -t UTF-8"),
    (codecs.BOM_UTF16_BE, "it is UTF-16: convert it, iconv -f UTF-16 -t UTF-8"),
    (b"\x1f\x8b", "it is compressed: unpack it with gunzip"),
    (b"\x28\xb5\x2f\xfd", "it is compressed: unpack it with unzstd"),
    (b"PK\x03\x04", "it is a zip archive or a spreadsheet: unpack it, or save it as CSV"),
    (b"PAR1", "it is Parquet: name it .parquet"),
)
EVERY = 256  # rows between two looks at whether to stop


def never() -> None:
    """For callers whom nobody interrupts."""


def read_file(path: Path, check: Check = never) -> list[Row]:
    """The rows of one file, by its suffix. Values keep the file's types; in CSV all are strings."""
    try:
        return READERS[path.suffix.lower()](path, check)
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror or error})") from error


def read_json(path: Path, check: Check) -> list[Row]:
    """One object per line, one array of objects, or a single object over several lines."""
    text = read_text(path)
    items: list[tuple[int, Any]] = []
    opening = text.lstrip().partition("\n")[0].strip()
    if opening.startswith("["):
        items, unit = list(enumerate(parse_json(text, path, 1), 1)), "item "
    elif opening.startswith("{") and not opening.endswith("}"):
        items, unit = [(1, parse_json(text, path, 1))], ""
    else:
        # Not splitlines: a JSON string may hold U+2028 and its like.
        for n, line in enumerate(re.split(r"\r\n?|\n", text), 1):
            if line.strip():
                items.append((n, parse_json(line, path, n)))
            if n % EVERY == 0:
                check()
        unit = ""
    for n, item in items:
        if not isinstance(item, dict):
            raise DataError(f"{path}:{unit}{n}: expected an object, found {json.dumps(item)[:80]}")
    return [item for _, item in items]


def parse_json(text: str, path: Path, line: int) -> Any:
    """Parse JSON that begins on the given line of the file."""
    try:
        return json.loads(text, object_pairs_hook=once_each, parse_float=as_written)
    except json.JSONDecodeError as error:
        at_end = error.msg.startswith("Unterminated") or error.pos >= len(text.rstrip())
        cut = "; is the file cut off?" if at_end else _hint(text, error)
        where = f"{path}:{line + error.lineno - 1}"
        raise DataError(f"{where}: not valid JSON ({error.msg}){cut}") from error
    except (ValueError, RecursionError) as error:  # a key twice, endless digits, endless brackets
        raise DataError(f"{path}:{line}: cannot be read as JSON ({one_line(error)})") from error


def _hint(text: str, error: json.JSONDecodeError) -> str:
    """What to do about some JSON that people write by hand."""
    if "\0" in text[error.pos : error.pos + 1]:
        return "; zero bytes, as a crash leaves them: the file was not written to its end"
    if text[error.pos : error.pos + 1] in (*TYPOGRAPHIC,):
        return '; typographic quotes are no quotes, write "'
    if error.msg == "Extra data":
        return "; several objects stand each on a line of its own, or in [ ] with commas between"
    return ""


class Written(float):
    """A number with a fraction that Python would write in another way: 1.10, 1e3."""

    def __new__(cls, text: str) -> Written:
        number = super().__new__(cls, text)
        number.text = text
        return number

    text: str

    def __str__(self) -> str:
        return self.text


def as_written(text: str) -> float:
    """A number from JSON that is written again as it stands there: labels and texts are compared."""
    number = float(text)
    return number if str(number) == text else Written(text)


def once_each(pairs: list[tuple[str, Any]]) -> Row:
    """An object, unless a key stands twice in it: JSON's readers keep one of them silently."""
    found = dict(pairs)
    if len(found) < len(pairs):
        names = [name for name, _ in pairs]
        raise ValueError(f"{next(n for n in names if names.count(n) > 1)!r} stands twice")
    return found


def read_csv(path: Path, check: Check) -> list[Row]:
    """Comma-separated, with a header line; quotes as in RFC 4180."""
    text = read_text(path)
    csv.field_size_limit(max(csv.field_size_limit(), len(text)))  # its default is 128 KiB
    reader = csv.reader(io.StringIO(text, newline=""), strict=True)
    try:
        header = next(reader, [])
        if len(header) == 1 and (others := [mark for mark in ";\t|" if mark in header[0]]):
            raise DataError(
                f"{path}:1: the header is one column, {header[0]!r}; columns are separated by commas, "
                f"not by {others[0]!r}"
            )
        if len(set(header)) < len(header):
            raise DataError(f"{path}:1: a column name stands twice: {', '.join(header)}")
        rows: list[Row] = []
        for values in filter(None, reader):
            if len(values) != len(header):
                raise DataError(
                    f"{path}:{reader.line_num}: {len(values)} values for {len(header)} columns"
                )
            rows.append(dict(zip(header, values, strict=True)))
            if len(rows) % EVERY == 0:
                check()
    except csv.Error as error:
        raise DataError(f"{path}:{reader.line_num}: not valid CSV ({error})") from error
    return rows


def read_parquet(path: Path, check: Check) -> list[Row]:
    """Apache Parquet."""
    import pyarrow
    import pyarrow.parquet

    rows: list[Row] = []
    try:
        with pyarrow.parquet.ParquetFile(path) as file:
            names = file.schema_arrow.names
            if len(set(names)) < len(names):
                raise DataError(f"{path}: a column name stands twice: {', '.join(names)}")
            for batch in file.iter_batches(EVERY):
                rows += map(without_nulls, batch.to_pylist(maps_as_pydicts="strict"))
                check()
    except pyarrow.ArrowException as error:
        raise DataError(f"{path}: not a valid Parquet file ({one_line(error)})") from error
    return rows


def without_nulls(value: Any, keep: str = "") -> Any:
    """A value without empty keys, but for what stands under `keep`: a table gives the keys of any
    row's objects to those of all."""
    if isinstance(value, list):
        return [without_nulls(one, keep) for one in value]
    if isinstance(value, dict):
        return {
            key: one if key == keep else without_nulls(one, keep)
            for key, one in value.items()
            if one is not None
        }
    return value


def read_text(path: Path) -> str:
    """A UTF-8 file; a byte order mark, which spreadsheets write, is dropped."""
    content = path.read_bytes()
    try:
        return content.decode("utf-8").removeprefix("\ufeff")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        byte = content[error.start]
        way_out = next((way for start, way in STARTS if content.startswith(start)), "convert it")
        raise DataError(f"{path}:{line}: not UTF-8 (byte 0x{byte:02x}); {way_out}") from error


def one_line(error: BaseException) -> str:
    """What an error says, in one line."""
    return " ".join(str(error).split()) or type(error).__name__


READERS: dict[str, Callable[[Path, Check], list[Row]]] = {
    ".jsonl": read_json,
    ".json": read_json,
    ".csv": read_csv,
    ".parquet": read_parquet,
}
