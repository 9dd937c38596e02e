"""Prompts continued by a model: greedily, or by drawing from its distribution.

The loop is transformers' `generate`, which knows every family's cache. Its settings are ours: what
a model's generation_config asks for (sampling, penalties, forced tokens) would make scores depend on
a file that nobody looks at.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import GenerationConfig as _GenerationConfig
from transformers import PreTrainedTokenizerBase

from zoft.engine.probe.view import ProbedModel
from zoft.errors import DataError
from zoft.system.silence import quiet

Ids = tuple[int, ...]
GenerationConfig: Any = _GenerationConfig  # it carries no types


@dataclass(frozen=True, slots=True)
class Decoding:
    """At most `max_new_tokens` behind a prompt, and none behind the model's end tokens.

    `one_line`: none behind the first line that has a word in it, either. `temperature` 0 takes the
    likeliest token; above, tokens are drawn by `seed`.
    """

    max_new_tokens: int
    one_line: bool = False
    temperature: float = 0.0
    seed: int = 0

    @property
    def drawn(self) -> bool:
        return self.temperature > 0


def completions(
    view: ProbedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[Ids],
    decoding: Decoding,
    *,
    batch_size: int,
    device: torch.device,
    between: Callable[[], None] = lambda: None,
    counted: Callable[[int], None] = lambda _: None,
) -> list[str]:
    """What the model writes behind each prompt, in their order, without special tokens.

    Batches of like length, padded on the left and masked there, so that a text does not depend on
    its neighbours but for the last bits of its logits. `between` is called after every token: it may
    stop by raising; `counted` after every batch, with the prompts so far. With a temperature, prompts
    are taken one by one, each from the same seed.
    """
    order = sorted(range(len(prompts)), key=lambda i: len(prompts[i]))
    size = 1 if decoding.drawn else batch_size
    found: dict[int, str] = {}
    for begin in range(0, len(order), size):
        chosen = order[begin : begin + size]
        rows = [prompts[i] for i in chosen]

        def after_token(_rows: Sequence[Ids]) -> bool:
            between()
            return False

        written = continued(view, tokenizer, rows, decoding, device, after_token)
        found |= dict(
            zip(chosen, (text_of(tokenizer, ids, decoding) for ids in written), strict=True)
        )
        counted(len(found))
    return [found[i] for i in range(len(prompts))]


def continued(
    view: ProbedModel,
    tokenizer: PreTrainedTokenizerBase,
    rows: Sequence[Ids],
    decoding: Decoding,
    device: torch.device,
    after_token: Callable[[Sequence[Ids]], bool],
) -> list[Ids]:
    """The tokens behind each prompt of one batch, up to and without an end token.

    `after_token` gets the tokens of every row so far, and says whether to stop here.
    """
    longest = max(map(len, rows))
    input_ids = torch.zeros(len(rows), longest, dtype=torch.int64)
    mask = torch.zeros_like(input_ids)
    for i, ids in enumerate(rows):
        input_ids[i, longest - len(ids) :] = torch.tensor(ids)
        mask[i, longest - len(ids) :] = 1
    model: Any = view.model
    ends = end_tokens(model, tokenizer)

    def written(all_ids: Tensor) -> list[Ids]:
        return [_until(ids, ends) for ids in all_ids[:, longest:].tolist()]

    def finished(all_ids: Tensor, _scores: Any, **_more: Any) -> Tensor:
        so_far = written(all_ids)
        stop = after_token(so_far)
        lines = [decoding.one_line and _has_line(_decoded(tokenizer, ids)) for ids in so_far]
        return torch.tensor([stop or line for line in lines], device=all_ids.device)

    settings = GenerationConfig(
        max_new_tokens=decoding.max_new_tokens,
        do_sample=decoding.drawn,
        eos_token_id=sorted(ends) or None,
        pad_token_id=0,  # masked, or behind an end token
        use_cache=True,
        **({"temperature": decoding.temperature, "top_k": 0} if decoding.drawn else {}),
    )
    with (
        quiet(),
        _seeded(decoding, device),
        _own_settings(model),
        view.decoding(len(rows), longest + decoding.max_new_tokens),
    ):
        all_ids: Tensor = model.generate(
            input_ids=input_ids.to(device),
            attention_mask=mask.to(device),
            generation_config=settings,
            stopping_criteria=[finished],
        )
    return written(all_ids)


def require_room(
    view: ProbedModel, prompts: Sequence[Ids], max_new_tokens: int, advice: str
) -> None:
    """Raise DataError, which ends in `advice`, if a prompt and its continuation have no positions."""
    config: Any = view.model.config
    positions = getattr(config, "max_position_embeddings", None)
    longest = max(map(len, prompts))
    if positions is not None and longest + max_new_tokens > positions:
        raise DataError(
            f"the longest prompt has {longest} tokens, and {max_new_tokens} may follow: the model "
            f"has {positions} positions; {advice}"
        )


def end_tokens(model: Any, tokenizer: PreTrainedTokenizerBase) -> set[int]:
    """The tokenizer's EOS, and what the model's own settings end a turn with."""
    ends: set[int] = set()
    named = getattr(model.generation_config, "eos_token_id", None)
    for found in (named, getattr(tokenizer, "eos_token_id", None)):
        ends.update(found if isinstance(found, list) else [] if found is None else [found])
    return ends


def text_of(tokenizer: PreTrainedTokenizerBase, ids: Ids, decoding: Decoding) -> str:
    """The tokens as text; of a `one_line` decoding its first line that has a word in it."""
    text = _decoded(tokenizer, ids)
    return text.strip().partition("\n")[0].rstrip() if decoding.one_line else text


def _decoded(tokenizer: PreTrainedTokenizerBase, ids: Ids) -> str:
    return str(
        tokenizer.decode(list(ids), skip_special_tokens=True, clean_up_tokenization_spaces=False)
    )


def _has_line(text: str) -> bool:
    return "\n" in text.lstrip()


def _until(ids: Sequence[int], ends: set[int]) -> Ids:
    first = next((i for i, token in enumerate(ids) if token in ends), len(ids))
    return tuple(ids[:first])


@contextmanager
def _own_settings(model: Any) -> Iterator[None]:
    """`generate` fills what we leave open from the model's generation_config: inside it has none."""
    holders = [model, model.get_base_model()] if hasattr(model, "get_base_model") else [model]
    before = [holder.generation_config for holder in holders]
    for holder in holders:
        holder.generation_config = GenerationConfig()
    try:
        yield
    finally:
        for holder, config in zip(holders, before, strict=True):
            holder.generation_config = config


@contextmanager
def _seeded(decoding: Decoding, device: torch.device) -> Iterator[None]:
    """torch's own generator, which `generate` draws from, set for this batch and put back."""
    if not decoding.drawn:
        yield
        return
    with torch.random.fork_rng([] if device.type == "cpu" else [device], device_type=device.type):
        torch.manual_seed(decoding.seed)
        yield
