"""Weights that are really moved, block by block, equal a copy of the model that was moved as a whole."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from support import tiny
from support.directions import directions
from support.twins import moved, view_of
from torch import Tensor, nn
from transformers import PreTrainedModel

from zoft.engine.diagnostics import agrees_with_moved_weights
from zoft.engine.estimator import Losses
from zoft.engine.moved import MovedModel
from zoft.models.trainable import parameter_ids, tuned_parameters
from zoft.recipe.sections.tune import TuneSection

IDS = torch.tensor([[5, 9, 2, 7, 11], [3, 8, 1, 4, 6]])


@torch.no_grad()
def logits(model: nn.Module) -> Tensor:
    found: Tensor = model(input_ids=IDS, use_cache=False).logits.flatten(0, 1)
    return found


@pytest.mark.parametrize("kind", ["signs", "rank1"])
@pytest.mark.parametrize("make", [tiny.llama, tiny.gpt2, tiny.opt])
def test_blocks_move_as_the_whole_model_does(
    make: Callable[[], PreTrainedModel], kind: str
) -> None:
    model = make()
    tuned = tuned_parameters(model, TuneSection())
    model_moved = MovedModel(model, parameter_ids(tuned), torch.float32, masked=False)
    z = directions(3, kind).at(1, 0)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    with model_moved.at(z, 0.01):
        found = model_moved.logits(IDS, torch.arange(10))
    assert torch.equal(found, logits(moved(model, TuneSection(), z, 0.01)))
    assert not torch.equal(found, logits(model))
    assert all(torch.equal(p, before[name]) for name, p in model.named_parameters())


def test_a_pass_that_breaks_off_leaves_the_weights_as_they_were() -> None:
    model = tiny.llama()
    ids = parameter_ids(tuned_parameters(model, TuneSection()))
    before = {name: p.data_ptr() for name, p in model.named_parameters()}

    def broken(*_: object) -> None:
        raise KeyboardInterrupt

    model.model.layers[1].mlp.register_forward_hook(broken)
    model_moved = MovedModel(model, ids, torch.float32, masked=False)
    with pytest.raises(KeyboardInterrupt), model_moved.at(directions(3, "signs").at(1, 0), 0.01):
        model_moved.logits(IDS, torch.arange(10))
    assert {name: p.data_ptr() for name, p in model.named_parameters()} == before


def test_it_says_what_memory_it_takes() -> None:
    model = tiny.llama()
    block = sum(p.numel() for p in model.model.layers[0].parameters())
    outside = sum(p.numel() for n, p in model.named_parameters() if ".layers." not in n)
    largest = max(p.numel() for p in model.parameters())
    ids = parameter_ids(tuned_parameters(model, TuneSection()))
    moved_model = MovedModel(model, ids, torch.float32, masked=False)
    assert moved_model.extra_bytes == 4 * (block + outside) + 8 * largest


class Scaled(nn.Module):
    """Multiplies by a parameter without dimensions."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner
        self.scale = nn.Parameter(torch.tensor(1.5), requires_grad=False)

    def forward(self, x: Tensor) -> Tensor:
        scaled: Tensor = self.inner(x) * self.scale
        return scaled


@pytest.mark.parametrize("kind", ["signs", "gaussian", "rank1"])
def test_a_parameter_without_dimensions_is_probed_as_it_is_moved(kind: str) -> None:
    model = tiny.llama()
    model.model.layers[0].mlp = Scaled(model.model.layers[0].mlp)
    view, tuned = view_of(model)
    moved_model = MovedModel(model, parameter_ids(tuned), torch.float32, masked=False)
    z = directions(3, kind).at(1, 0)
    with moved_model.at(z, 0.01):
        expected = moved_model.logits(IDS, torch.arange(10))
    with view.probe(z, 0.01):
        assert torch.allclose(view.logits(IDS, torch.arange(10)), expected, atol=1e-5)


@pytest.mark.parametrize(("rough", "agrees"), [(1e-3, True), (1e-5, False)])
def test_a_loss_that_rounding_moves_is_compared_with_that_in_mind(
    rough: float, agrees: bool
) -> None:
    """A loss that jumps by `rough` from one weight to the next, and a probe that is off by 5e-4."""
    scales: list[float] = []

    @contextmanager
    def at(_: Any, scale: float) -> Iterator[None]:
        scales.append(scale)
        yield

    def losses(_: Any) -> Losses:
        jump = rough * (len(scales) % 2)
        return Losses(torch.tensor([[1.0 + jump]]).double(), torch.ones(1).double())

    view = SimpleNamespace(computing_in=lambda _: nullcontext())
    estimator: Any = SimpleNamespace(
        view=view, perturbation=1e-3, direction=lambda *_: None,
        example_losses=lambda *_: [1.0 + rough + 5e-4],
    )  # fmt: skip
    moved: Any = SimpleNamespace(at=at, compute_dtype=torch.float32)
    assert agrees_with_moved_weights(estimator, moved, losses) == agrees
    assert scales == pytest.approx([0.01] * 3, rel=2e-6)
