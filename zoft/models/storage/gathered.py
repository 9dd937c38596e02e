"""Tensors of a model that lie in a checkpoint's files in several pieces, or in another order."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from zoft.models.storage.safetensors import Reader, Stored
from zoft.models.storage.tracing import Piece


@dataclass(frozen=True)
class Gathered:
    """A tensor of pieces, each with the range of a file that holds it and maybe more."""

    shape: tuple[int, ...]
    pieces: tuple[tuple[Stored, Piece], ...]

    @property
    def file(self) -> Path:
        return self.pieces[0][0].file

    @property
    def begin(self) -> int:
        return min(stored.begin for stored, _ in self.pieces)


Source = Stored | Gathered


def source_of(
    shape: Sequence[int], pieces: Sequence[Piece], stored: Mapping[str, Stored]
) -> Source:
    """Where a tensor of such pieces lies, if its files hold the tensors `stored`."""
    found = [_range(stored[piece.source], piece) for piece in pieces]
    if len(pieces) == 1 and pieces[0].in_order:
        return replace(found[0][0], shape=tuple(shape))
    return Gathered(tuple(shape), tuple(found))


def read(reader: Reader, source: Source, out: Tensor) -> None:
    """Fill `out` as `Reader.read` does, from wherever the tensor lies.

    What is in another order is read beside `out` first, a matrix at a time.
    Raises EnvironmentProblem.
    """
    if isinstance(source, Stored):
        reader.read(source, out)
        return
    for stored, piece in source.pieces:
        _read_piece(reader, stored, piece, out)


def _read_piece(reader: Reader, stored: Stored, piece: Piece, out: Tensor) -> None:
    place = piece.place(out)
    if piece.in_order and place.is_contiguous():
        reader.read(stored, place)
        return
    if len(piece.shape) > 2 and piece.shape[0] > 1:
        whole = replace(stored, begin=stored.begin - piece.offset * stored.dtype.itemsize)
        for row in piece.rows():
            _read_piece(reader, *_range(whole, row), out)
        return
    beside = torch.empty(stored.numel, dtype=stored.dtype)
    reader.read(stored, beside)
    place.copy_(beside.as_strided(piece.shape, piece.strides))


def _range(stored: Stored, piece: Piece) -> tuple[Stored, Piece]:
    """Narrow a whole tensor to the elements from the piece's first to its last."""
    last = sum((n - 1) * stride for n, stride in zip(piece.shape, piece.strides, strict=True))
    begin = stored.begin + piece.offset * stored.dtype.itemsize
    there = (last + 1,) if math.prod(piece.shape) else (0,)
    return replace(stored, begin=begin, shape=there), piece
