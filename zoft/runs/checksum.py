"""Checksums in a journal's lines: one that was changed, moved or is of another run is found.

The last entry of a line, `"crc32":"89abcdef"`, is the CRC-32 of the text before its comma, continued
from the checksum of the line before. The header's stands alone; what the first step's continues from
is "chain", the CRC-32 of the header as it was before it had these two. So an artefact's header may
name the base and the result in its own way, and the steps stay those of the run.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any
from zlib import crc32

CHAIN, KEY = "chain", "crc32"

UNPROTECTED = "none, for an early zoft began it: a changed digit is not found"

_MARKED = re.compile(rb'(.*),"crc32":"([0-9a-f]{8})"}', re.DOTALL)


def protected(header: Mapping[str, Any]) -> bool:
    """Whether the lines of a journal have checksums; those of early journals have none."""
    return CHAIN in header or KEY in header


def beginning(line: bytes) -> str:
    """The "chain" of a header, by its line without one."""
    return f"{crc32(_text(line)):08x}"


def marked(line: bytes, before: int) -> tuple[bytes, int]:
    """The line (an object and a newline) with its checksum, and that: continued from `before`."""
    text = _text(line)
    own = crc32(text, before)
    return b'%s,"crc32":"%08x"}\n' % (text, own), own


def checked(line: bytes, before: int) -> int:
    """The checksum of a line (without its newline). Raises ValueError if it is not the right one."""
    found = _MARKED.fullmatch(line)
    if not found:
        raise ValueError("it has no checksum at its end")
    own = crc32(found[1], before)
    if own != int(found[2], 16):
        raise ValueError(
            "its checksum is not that of this line behind the one before: it was changed, or is "
            "not from here"
        )
    return own


def unwritten(line: bytes) -> bool:
    """Whether a part of a line was never written: a power cut can leave zeros in its place."""
    return bytes(8) in line


def torn(tail: bytes, before: int) -> bool:
    """Whether what is behind the last newline can be the beginning of a line.

    A line that has its closing brace must be right: it was written whole, but for the newline.
    """
    if b"}" in tail:
        return _is_right(tail, before)
    return tail.startswith(b"{") or unwritten(tail)


def _is_right(line: bytes, before: int) -> bool:
    try:
        checked(line, before)
    except ValueError:
        return False
    return True


def _text(line: bytes) -> bytes:
    return line.removesuffix(b"\n").removesuffix(b"}")
