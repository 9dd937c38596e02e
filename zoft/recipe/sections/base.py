"""What the sections of a recipe are made of: closed, strict, frozen; and the kinds of their values."""

from __future__ import annotations

import re
from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ByteSize,
    ConfigDict,
    Field,
    WithJsonSchema,
    model_validator,
)
from pydantic_core import PydanticCustomError

Auto = Literal["auto"]
DType = Literal["auto", "float32", "bfloat16", "float16"]
Whole = Annotated[int, Field(ge=0)]
Counted = Annotated[int, Field(ge=1)]
NotNegative = Annotated[float, Field(ge=0)]
Positive = Annotated[float, Field(gt=0)]
Decay = Annotated[float, Field(ge=0, lt=1)]

LEAST_SIZE = 1_000_000  # a smaller number is one that lacks its unit


def _text_keys(mapping: Any) -> Any:
    """YAML reads the keys of `{0: bad, true: good}` as numbers and bools; a label is text."""
    if not isinstance(mapping, dict):
        return mapping
    renamed = {str(key): value for key, value in mapping.items()}
    if len(renamed) < len(mapping):
        raise ValueError("two keys are the same text")
    return renamed


def _some(word: str) -> str:
    """A word that competes with others must have tokens of its own."""
    if not word.strip():
        raise ValueError("an empty word; give each label one")
    if problem := unwritable(word):
        raise ValueError(problem)
    return word


def unwritable(text: str) -> str | None:
    """What keeps a tokenizer from reading a text, or None."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return "half a character (a lone surrogate)"
    return None


TextMap = Annotated[dict[str, str], BeforeValidator(_text_keys)]
Words = Annotated[dict[str, Annotated[str, AfterValidator(_some)]], BeforeValidator(_text_keys)]


def _has_a_unit(size: Any) -> Any:
    """pydantic takes `8` for eight bytes, `8 GiB or so` for 8 GiB, and `8GBit` for a gigabyte."""
    if isinstance(size, str) and re.fullmatch(r"\d+(\.\d+)?\s*[KMGT]i?B", size.strip(), re.I):
        return size.strip()
    if isinstance(size, int) and not isinstance(size, bool) and size >= LEAST_SIZE:
        return size
    raise PydanticCustomError("byte_size", "a size such as 8GiB or 500MB")


# Bytes. In resolved.yaml a size is a plain number, so numbers are read as well.
Size = Annotated[
    ByteSize,
    BeforeValidator(_has_a_unit),
    WithJsonSchema(
        {
            "title": "size such as 8GiB or 500MB",
            "type": ["string", "integer"],
            "pattern": r"^\s*\d+(\.\d+)?\s*[KMGTkmgt][iI]?[bB]\s*$",
            "minimum": LEAST_SIZE,
        }
    ),
]


class Section(BaseModel):
    """What all sections share: closed, frozen, no type coercion, no NaN."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)

    @model_validator(mode="before")
    @classmethod
    def _empty(cls, value: Any) -> Any:
        """A section whose keys are all commented out is null in YAML, and means the defaults."""
        return {} if value is None else value
