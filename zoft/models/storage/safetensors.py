"""safetensors files as byte ranges: read into memory that is there, written as a stream.

The safetensors package maps a file or hands out new tensors, and writes what is in memory as a
whole. Here resident memory and the page cache stay bounded however large the model is.
"""

from __future__ import annotations

import json
import math
import os
import struct
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path
from types import TracebackType
from typing import Any

import torch
from torch import Tensor

from zoft.errors import EnvironmentProblem

WEIGHTS = "model.safetensors"
WEIGHTS_INDEX = "model.safetensors.index.json"
POINTER = b"version https://git-lfs.github.com/"  # what stands where Git LFS fetched no file
IS_POINTER = "it is a pointer of Git LFS; fetch the file itself: git lfs pull"
_PIECE = 8 << 20  # bytes read or written at a time; whole elements of every type
_READAHEAD = 4 << 20  # how far around a range the kernel may have cached what nobody asked for
_HEADER_LIMIT = 100_000_000  # bytes, as the safetensors package has it

# In the order in which the package puts them into a file (widest first, then by its enum).
_DTYPES = {
    "U64": torch.uint64,
    "I64": torch.int64,
    "F64": torch.float64,
    "C64": torch.complex64,
    "F32": torch.float32,
    "U32": torch.uint32,
    "I32": torch.int32,
    "BF16": torch.bfloat16,
    "F16": torch.float16,
    "U16": torch.uint16,
    "I16": torch.int16,
    "F8_E5M2FNUZ": torch.float8_e5m2fnuz,
    "F8_E4M3FNUZ": torch.float8_e4m3fnuz,
    "F8_E8M0": torch.float8_e8m0fnu,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}
_CODES = {dtype: code for code, dtype in _DTYPES.items()}
_RANK = {dtype: rank for rank, dtype in enumerate(_DTYPES.values())}

Entry = tuple[torch.dtype, tuple[int, ...]]  # what a tensor is, without its numbers


@dataclass(frozen=True)
class Stored:
    """A tensor in a file: `nbytes` from byte `begin` on, row-major, little endian."""

    file: Path
    begin: int
    dtype: torch.dtype
    shape: tuple[int, ...]

    @property
    def numel(self) -> int:
        return math.prod(self.shape)

    @property
    def nbytes(self) -> int:
        return self.numel * self.dtype.itemsize

    @property
    def code(self) -> str:
        """The type's name in the file, such as BF16."""
        return _CODES[self.dtype]


def stored_tensors(folder: Path) -> dict[str, Stored]:
    """Every tensor of a model folder by its name in the file; only headers are read.

    Raises EnvironmentProblem for files that are missing, cut short or not safetensors.
    """
    index = folder / WEIGHTS_INDEX
    if not index.is_file():
        return tensors_in(folder / WEIGHTS)
    with _explained(index):
        names = sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
    tensors: dict[str, Stored] = {}
    for name in names:
        tensors |= tensors_in(folder / name)
    return tensors


def tensors_in(file: Path) -> dict[str, Stored]:
    """Every tensor of one safetensors file by its name. Raises EnvironmentProblem likewise."""
    with _explained(file):
        return _header(file)


class Reader:
    """Files kept open and one buffer for conversions; used by one thread at a time.

    With `drop_pages` nothing that it read stays in the page cache, where it would count against
    a memory limit and push out what is needed more.
    """

    def __init__(self, *, drop_pages: bool = True) -> None:
        self._drop_pages = drop_pages
        self._open: dict[Path, int] = {}
        self._buffer: Tensor | None = None

    def __enter__(self) -> Reader:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def read(self, stored: Stored, out: Tensor) -> None:
        """Fill `out` (CPU, contiguous, as many elements), converted where its type is another.

        The interpreter's lock is free while the disk works.
        Raises EnvironmentProblem if the file is gone, cut short or unreadable.
        """
        if out.device.type != "cpu" or not out.is_contiguous() or out.numel() != stored.numel:
            raise ValueError(f"cannot read {stored} into {out.device} {out.dtype} {out.shape}")
        if out.dtype == stored.dtype:
            self._fill(stored, 0, out)
            return
        done, target = 0, out.view(-1)
        for raw in self.pieces(stored):
            values = torch.frombuffer(raw, dtype=stored.dtype)
            target[done : done + len(values)].copy_(values)
            done += len(values)

    def pieces(self, stored: Stored) -> Iterator[memoryview]:
        """The tensor's bytes, some megabytes at a time, in memory that is reused for the next.

        Raises EnvironmentProblem as `read` does.
        """
        if self._buffer is None:
            self._buffer = torch.empty(_PIECE, dtype=torch.uint8)
        for first in range(0, stored.nbytes, _PIECE):
            raw = self._buffer[: stored.nbytes - first]
            self._fill(stored, first, raw)
            yield memory_of(raw)

    def close(self) -> None:
        """Close every file and drop the buffer; a later `read` opens them again."""
        while self._open:
            os.close(self._open.popitem()[1])
        self._buffer = None

    def _descriptor(self, file: Path) -> int:
        """Open the file, once."""
        if file not in self._open:
            self._open[file] = os.open(file, os.O_RDONLY | os.O_CLOEXEC)
        return self._open[file]

    def _fill(self, stored: Stored, offset: int, out: Tensor) -> None:
        """Read into all of `out`'s memory, from byte `offset` of the tensor on."""
        memory = memory_of(out)
        position, done = stored.begin + offset, 0
        try:
            descriptor = self._descriptor(stored.file)
            while done < len(memory):
                got = os.preadv(descriptor, [memory[done : done + _PIECE]], position + done)
                if got == 0:
                    raise EnvironmentProblem(f"cannot read {stored.file}: it is cut short")
                done += got
                if self._drop_pages:
                    _forget(descriptor, stored.begin, position + done)
        except OSError as error:
            raise EnvironmentProblem(f"cannot read {stored.file}: {error.strerror}") from error


def in_file_order(entries: Mapping[str, Entry]) -> list[str]:
    """The names in the order in which a safetensors file holds them: by type, then by name."""
    return sorted(entries, key=lambda name: (_RANK[entries[name][0]], name))


class Writer:
    """The file that `safetensors.torch.save_file` would write, tensor by tensor in any order.

    `entries` says beforehand what will be in it. Nothing is synced. Raises OSError.
    """

    def __init__(
        self, path: Path, entries: Mapping[str, Entry], metadata: Mapping[str, str] | None = None
    ) -> None:
        names = in_file_order(entries)
        header = _header_bytes(names, entries, metadata)
        sizes = [math.prod(entries[name][1]) * entries[name][0].itemsize for name in names]
        self._entries = dict(entries)
        self._begins = dict(zip(names, accumulate([len(header), *sizes]), strict=False))
        self._stream = path.open("wb")
        self._stream.write(header)

    def put(self, name: str, values: Tensor) -> None:
        """Write one tensor, from any device; its memory may be used again on return."""
        if (values.dtype, tuple(values.shape)) != self._entries.pop(name):
            raise ValueError(f"{name} is {values.dtype} {values.shape}, not what was announced")
        self._stream.seek(self._begins[name])
        raw = memory_of(values.detach().cpu().contiguous())
        for first in range(0, len(raw), _PIECE):
            self._stream.write(raw[first : first + _PIECE])

    def __enter__(self) -> Writer:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._stream.close()
        if self._entries and kind is None:
            raise ValueError(f"{self._stream.name} lacks {', '.join(self._entries)}")


def _header_bytes(
    names: Iterable[str], entries: Mapping[str, Entry], metadata: Mapping[str, str] | None
) -> bytes:
    """Return the header of a file that holds the tensors in the order of `names`."""
    header: dict[str, Any] = {} if metadata is None else {"__metadata__": dict(metadata)}
    end = 0
    for name in names:
        dtype, shape = entries[name]
        begin, end = end, end + math.prod(shape) * dtype.itemsize
        header[name] = {
            "dtype": _CODES[dtype],
            "shape": list(shape),
            "data_offsets": [begin, end],
        }
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    return struct.pack("<Q", len(text)) + text


@contextmanager
def _explained(file: Path) -> Iterator[None]:
    """Turn what goes wrong with the file into EnvironmentProblem."""
    try:
        yield
    except OSError as error:
        raise EnvironmentProblem(f"cannot read {file}: {error.strerror}") from error
    except KeyError as error:
        raise EnvironmentProblem(f"cannot read {file}: it lacks {error}") from error
    except (ValueError, TypeError, AttributeError, struct.error) as error:
        raise EnvironmentProblem(f"cannot read {file}: {error or type(error).__name__}") from error


def _header(file: Path) -> dict[str, Stored]:
    """The file's tensors: its header is a length (8 bytes, little endian), then JSON with offsets
    from the header's end."""
    with file.open("rb") as stream:
        size = os.fstat(stream.fileno()).st_size
        begin = stream.read(len(POINTER))
        if begin == POINTER:
            raise ValueError(IS_POINTER)
        (length,) = struct.unpack("<Q", begin[:8])
        if length > min(size, _HEADER_LIMIT):
            raise ValueError("it is no safetensors file")
        stream.seek(8)
        header = json.loads(stream.read(length))
    header.pop("__metadata__", None)
    tensors = {}
    for name, entry in header.items():
        if entry["dtype"] not in _DTYPES:
            raise ValueError(f"{name} is of the unknown type {entry['dtype']}")
        begin, end = (8 + length + offset for offset in entry["data_offsets"])
        stored = Stored(file, begin, _DTYPES[entry["dtype"]], tuple(entry["shape"]))
        if begin + stored.nbytes != end:
            raise ValueError(f"its header contradicts itself at {name}")
        if end > size:
            raise ValueError("it is cut short")
        tensors[name] = stored
    return tensors


def memory_of(tensor: Tensor) -> memoryview:
    """The memory of a contiguous CPU tensor."""
    array: Any = tensor.view(-1).view(torch.uint8).numpy()
    return memoryview(array)


def _forget(descriptor: int, begin: int, end: int) -> None:
    """Drop the pages of a range, and around it what the kernel read ahead or holds as one folio."""
    begin = max(0, begin - _READAHEAD)
    os.posix_fadvise(descriptor, begin, end - begin, os.POSIX_FADV_DONTNEED)
