from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from support import tiny
from support.streams import streamed_weights
from transformers import GenerationConfig, PreTrainedModel

from zoft.engine.probe.view import ProbedModel
from zoft.errors import DataError, Interrupted
from zoft.inference.generation import Decoding, Ids, completions, continued, require_room, text_of
from zoft.models.adapters import attach_adapter
from zoft.models.load import load_model
from zoft.recipe.schema import ModelSection
from zoft.recipe.sections.tune import TuneSection

CPU = torch.device("cpu")
TOKENIZER = tiny.tokenizer()
PROMPTS: list[Ids] = [(0, *range(30 + n, 39 + 2 * n)) for n in (5, 0, 2, 9, 3, 7, 4, 2)]


def view_of(model: Any, dtype: torch.dtype = torch.float32) -> ProbedModel:
    return ProbedModel(model, {}, {}, dtype, torch.tensor([[1, 2, 3, 4]]))


def loud(build: Callable[..., PreTrainedModel], **changes: Any) -> PreTrainedModel:
    """Weights large enough that what is written depends on what was read."""
    model = build(**changes)
    for parameter in model.parameters():
        if parameter.ndim > 1:
            parameter.mul_(8)
    return model


def written(view: ProbedModel, prompts: Sequence[Ids], tokens: int = 12) -> list[Ids]:
    return continued(view, TOKENIZER, prompts, Decoding(tokens), CPU, lambda _rows: False)


def plainly(view: ProbedModel, prompt: Ids, tokens: int = 12) -> Ids:
    """The slow twin: a whole pass for every token, no cache, no padding, no library."""
    ids = list(prompt)
    with view.plain():
        while len(ids) < len(prompt) + tokens:
            last = torch.tensor([len(ids) - 1])
            ids.append(int(view.logits(torch.tensor([ids]), last).argmax()))
            if ids[-1] == tiny.EOS_ID:
                return tuple(ids[len(prompt) : -1])
    return tuple(ids[len(prompt) :])


@pytest.mark.parametrize("build", [tiny.llama, tiny.opt, tiny.gpt2, tiny.qwen2])
def test_greedy_tokens_are_those_of_the_slow_twin_at_any_batch_size(
    build: Callable[..., PreTrainedModel],
) -> None:
    view = view_of(loud(build))
    expected = [plainly(view, prompt) for prompt in PROMPTS]
    assert len(set(expected)) > 4  # they depend on the prompt
    assert written(view, PROMPTS) == expected
    assert [written(view, [prompt])[0] for prompt in PROMPTS] == expected


def test_with_an_adapter() -> None:
    adapted = attach_adapter(loud(tiny.llama), TuneSection(method="lora", r=4), seed=0)
    bare = written(view_of(loud(tiny.llama)), PROMPTS)
    assert written(view_of(adapted), PROMPTS) == bare  # B is zero
    for name, parameter in adapted.named_parameters():
        if "lora_B" in name:
            parameter.data.normal_(generator=torch.Generator().manual_seed(0))
    found = written(view_of(adapted), PROMPTS)
    assert found != bare
    assert found == [plainly(view_of(adapted), prompt) for prompt in PROMPTS]


def test_weights_that_are_cast_write_the_same_alone_and_together() -> None:
    view = view_of(loud(tiny.llama), torch.bfloat16)
    assert written(view, PROMPTS[:1]) == [plainly(view, PROMPTS[0])]
    same = [PROMPTS[0], PROMPTS[0]]
    assert len(set(written(view, same))) == 1


def test_streamed_blocks_are_fetched_once_a_token(tmp_path: Path) -> None:
    loud(tiny.llama).save_pretrained(tmp_path)
    expected = written(view_of(loud(tiny.llama)), PROMPTS[:3])
    section = ModelSection(name=str(tmp_path))
    loaded = load_model(
        tmp_path, section, dtype=torch.float32, device=CPU, streamed=lambda _block: True
    )
    weights = streamed_weights(loaded, [], tmp_path / "working", slots=2)
    entered: list[int] = []
    loaded.blocks[0].module.register_forward_pre_hook(lambda *_: entered.append(1))
    view = view_of(loaded.model)
    entered.clear()
    try:
        assert written(view, PROMPTS[:3]) == expected
        assert len(entered) == 12
    finally:
        weights.streamer.close()


def test_the_models_own_settings_do_not_matter_and_are_back_afterwards() -> None:
    view = view_of(loud(tiny.llama))
    expected = written(view, PROMPTS)
    config: Any = GenerationConfig(  # type: ignore[no-untyped-call]
        do_sample=True, temperature=3.0, repetition_penalty=5.0, min_new_tokens=12, top_k=2,
        no_repeat_ngram_size=1, max_length=20, suppress_tokens=[40], forced_eos_token_id=1,
    )  # fmt: skip
    view.model.generation_config = config
    assert written(view, PROMPTS) == expected
    assert view.model.generation_config is config


def test_an_end_token_of_the_models_settings_ends_a_text() -> None:
    view = view_of(loud(tiny.llama))
    [whole] = written(view, PROMPTS[:1])
    stop = whole[4]
    config: Any = GenerationConfig(eos_token_id=[tiny.EOS_ID, stop])  # type: ignore[no-untyped-call]
    view.model.generation_config = config
    both = written(view, PROMPTS[:2])  # the other row goes on
    assert both[0] == whole[: whole.index(stop)]
    assert stop not in both[1]


def test_a_line_ends_behind_its_first_word() -> None:
    line = Decoding(9, one_line=True)
    ids = tuple(TOKENIZER(" \n two words \nmore", add_special_tokens=False)["input_ids"])
    assert text_of(TOKENIZER, ids, line) == "two words"
    assert text_of(TOKENIZER, ids, Decoding(9)) == " \n two words \nmore"
    assert text_of(TOKENIZER, (), line) == ""


def test_completions_come_in_the_order_of_the_prompts() -> None:
    view = view_of(loud(tiny.gpt2))
    settings: dict[str, Any] = {"decoding": Decoding(6), "device": CPU}
    one = completions(view, TOKENIZER, PROMPTS, batch_size=1, **settings)
    assert completions(view, TOKENIZER, PROMPTS, batch_size=3, **settings) == one
    assert completions(view, TOKENIZER, PROMPTS[::-1], batch_size=8, **settings) == one[::-1]


def test_drawn_texts_follow_the_seed_and_leave_the_global_generator_alone() -> None:
    view = view_of(tiny.llama())  # nearly even odds
    torch.manual_seed(5)
    state = torch.get_rng_state()

    def drawn(seed: int, prompts: Sequence[Ids] = PROMPTS[:2]) -> list[str]:
        decoding = Decoding(8, temperature=1.0, seed=seed)
        return completions(view, TOKENIZER, prompts, decoding, batch_size=8, device=CPU)

    assert drawn(1) == drawn(1) != drawn(2)
    assert drawn(1, PROMPTS[1:2]) == drawn(1)[1:]
    assert torch.equal(state, torch.get_rng_state())


def test_it_stops_between_tokens_and_the_model_is_whole_again() -> None:
    view, calls = view_of(loud(tiny.llama)), []

    def stop() -> None:
        calls.append(1)
        if len(calls) == 3:
            raise Interrupted("enough", 130)

    with pytest.raises(Interrupted):
        completions(view, TOKENIZER, PROMPTS, Decoding(8), batch_size=4, device=CPU, between=stop)
    assert len(calls) == 3
    assert written(view, PROMPTS[:1]) == [plainly(view, PROMPTS[0])]


def test_a_text_that_would_leave_the_positions_is_refused() -> None:
    view = view_of(tiny.opt())
    require_room(view, [(0,) * 100], 28, "be brief")
    with pytest.raises(DataError, match=r"100 tokens, and 29 may follow.* 128 positions; be brief"):
        require_room(view, [(0,) * 100], 29, "be brief")
