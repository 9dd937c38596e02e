from __future__ import annotations

from pathlib import Path

import pytest
from support import tiny
from support.autograd import kept_bytes
from support.recipes import of_tiny_llama as recipe

from zoft.planning import backprop
from zoft.planning.backprop import first_order
from zoft.planning.workload import shape_of
from zoft.system.process_size import libraries


def test_adamw_takes_sixteen_bytes_a_weight_and_its_activations(tmp_path: Path) -> None:
    made = recipe(tmp_path, train={"batch_size": 1})
    found = first_order(made, shape_of(made))
    assert found
    numel = sum(p.numel() for p in tiny.llama().parameters())
    above = found.full - libraries() - 16 * numel
    logits = 24 * tiny.VOCABULARY * 12
    assert above == pytest.approx(logits + kept_bytes(tiny.llama(), 1, 24), rel=0.05)


@pytest.mark.parametrize("method", ["full", "lora"])
def test_lora_takes_less_whatever_the_recipe_tunes(tmp_path: Path, method: str) -> None:
    made = recipe(tmp_path, tune={"method": method})
    found = first_order(made, shape_of(made))
    assert found
    assert libraries() < found.lora < found.full


def test_a_model_that_looks_at_its_numbers_has_no_estimate(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def peek(*_: object) -> int:
        raise NotImplementedError("no data on the meta device")

    monkeypatch.setattr(backprop, "trace_saved", peek)
    made = recipe(tmp_path)
    assert first_order(made, shape_of(made)) is None


def test_activations_grow_with_the_batch(tmp_path: Path) -> None:
    one, four = (recipe(tmp_path, train={"batch_size": n}) for n in (1, 4))
    found = [first_order(made, shape_of(made)) for made in (one, four)]
    assert found[0]
    assert found[1]
    numel = sum(p.numel() for p in tiny.llama().parameters())
    fixed = libraries() + 16 * numel
    assert found[1].full - fixed == pytest.approx(4 * (found[0].full - fixed), rel=0.05)
