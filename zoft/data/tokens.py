"""Text to token ids: what the tokenizer puts in front exactly once, and nothing behind."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from transformers import PreTrainedTokenizerBase

from zoft.errors import DataError

Ids = tuple[int, ...]


@dataclass(frozen=True)
class Tokens:
    """A tokenizer, and the tokens (BOS, if any) that it puts in front of a text.

    `greedy` tokens also take up the blanks behind them, as Phi-3's `<|assistant|>` does.
    """

    tokenizer: PreTrainedTokenizerBase
    start: Ids
    greedy: frozenset[int]

    @classmethod
    def of(cls, tokenizer: PreTrainedTokenizerBase) -> Tokens:
        """Find `start` by tokenizing a letter with and without special tokens.

        `bos_token_id` would not do: GPT-2 has one but does not use it, and OPT's is its EOS.
        """
        bare = tokenizer("a", add_special_tokens=False)["input_ids"]
        full = tokenizer("a")["input_ids"]
        places = range(len(full) - len(bare) + 1)
        at = next((i for i in places if full[i : i + len(bare)] == bare), 0)
        added = tokenizer.added_tokens_decoder.items()
        greedy = frozenset(number for number, token in added if token.rstrip)
        return cls(tokenizer, tuple(full[:at]), greedy)

    def encode(self, texts: list[str]) -> list[Ids]:
        """Token ids of each text, with `start` in front exactly once, however often it stands there."""
        if not texts:  # which transformers refuses
            return []
        return [self._started(tuple(ids)) for ids in self._bare(texts)["input_ids"]]

    def encode_with_places(self, text: str) -> tuple[Ids, tuple[range, ...]]:
        """Token ids of one text and the characters that each stands for (none for `start`)."""
        if not self.tokenizer.is_fast:
            name = type(self.tokenizer).__name__
            raise DataError(f"data.format: messages needs a fast tokenizer, {name} is not one")
        encoding = self._bare([text], return_offsets_mapping=True)
        ids = self._started(tuple(encoding["input_ids"][0]))
        places = tuple(range(*place) for place in encoding["offset_mapping"][0])
        behind = len(ids) - len(self.start)
        return ids, (range(0),) * len(self.start) + places[len(places) - behind :]

    def ended(self, ids: Ids) -> Ids:
        """`ids` with EOS behind, where the tokenizer has one and it does not stand there yet."""
        eos = self.tokenizer.eos_token_id
        return ids if eos is None or ids[-1:] == (eos,) else (*ids, eos)

    def _started(self, ids: Ids) -> Ids:
        while self.start and ids[: len(self.start)] == self.start:
            ids = ids[len(self.start) :]
        return self.start + ids

    def _bare(self, texts: list[str], **options: bool) -> Any:
        # verbose=False: lengths are our business (data.max_length), not a warning of the library.
        return self.tokenizer(texts, add_special_tokens=False, verbose=False, **options)


def shared(a: Sequence[object], b: Sequence[object]) -> int:
    """Length of the longest common prefix of two sequences."""
    differ = (i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y)
    return next(differ, min(len(a), len(b)))
