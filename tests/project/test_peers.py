"""The benchmarks' peers are honest: they do what they claim, no more and no less."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Iterator
from types import ModuleType

import pytest
import torch
from support import ROOT, tiny
from torch import Tensor, nn

from zoft.data.examples import Choice, gold
from zoft.engine.objectives.objective import batch_score, micro_batches, objective_for
from zoft.engine.probe.view import ProbedModel

LR, SEED = 1e-2, 5


@pytest.fixture(scope="module")
def peers() -> Iterator[ModuleType]:
    folder = str(ROOT / "benchmarks")
    sys.path.insert(0, folder)
    try:
        yield importlib.import_module("peers")
    finally:
        sys.path.remove(folder)


@pytest.fixture(scope="module")
def examples() -> list[Choice]:
    draw = torch.Generator().manual_seed(0)
    lengths = (5, 9, 3, 12)
    prompts = [torch.randint(3, 283, (n,), generator=draw).tolist() for n in lengths]
    return [Choice(tuple(p), ((7,), (8,)), i % 2) for i, p in enumerate(prompts)]


def flat(model: nn.Module) -> Tensor:
    return torch.cat([p.detach().flatten() for p in model.parameters()])


def drawn(model: nn.Module, seed: int) -> Tensor:
    """z of all parameters, in their order, as torch's generator gives it."""
    torch.manual_seed(seed)
    return torch.cat(
        [torch.normal(0.0, 1.0, size=p.shape, dtype=p.dtype).flatten() for p in model.parameters()]
    )


def test_mezo_moves_the_weights_by_minus_lr_c_z(peers: ModuleType, examples: list[Choice]) -> None:
    model = tiny.llama()
    before, rows = flat(model), peers.mezo_rows(examples, classification=True)
    c = peers.MezoProcedure(model).step(lambda: peers.mezo_loss(model, rows), SEED, LR)
    assert c != 0
    expected = before.double() - LR * c * drawn(model, SEED).double()
    assert (flat(model) - expected).abs().max() < 1e-6


def test_mezo_measures_the_slope_along_z(peers: ModuleType, examples: list[Choice]) -> None:
    model = tiny.llama()
    before, z = flat(model), drawn(model, SEED)
    rows = peers.mezo_rows(examples, classification=True)
    losses = []
    for scale in (1e-3, -1e-3):
        torch.nn.utils.vector_to_parameters(before + scale * z, model.parameters())
        losses.append(peers.mezo_loss(model, rows))
    torch.nn.utils.vector_to_parameters(before, model.parameters())
    c = peers.MezoProcedure(model).probe(lambda: peers.mezo_loss(model, rows), SEED)
    assert c == pytest.approx((losses[0] - losses[1]) / 2e-3, rel=1e-3, abs=1e-3)


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-6), (torch.bfloat16, 2e-2)])
def test_the_walk_comes_back_up_to_rounding(
    peers: ModuleType, examples: list[Choice], dtype: torch.dtype, tolerance: float
) -> None:
    model = tiny.llama(dtype=dtype)
    before, rows = flat(model), peers.mezo_rows(examples, classification=False)
    peers.MezoProcedure(model).probe(lambda: peers.mezo_loss(model, rows), SEED)
    assert (flat(model) - before).abs().max() < tolerance


@pytest.mark.parametrize("classification", [True, False])
def test_mezos_loss_is_that_of_zofts_objectives(
    peers: ModuleType, examples: list[Choice], classification: bool
) -> None:
    """Left padding, whole head, a row per option: another road to the same number."""
    model = tiny.llama()
    objective = objective_for("choice" if classification else "lm")
    texts = examples if classification else [gold(x) for x in examples]
    [batch] = micro_batches(objective, texts, len(texts), torch.device("cpu"))
    view = ProbedModel(model, {}, {}, torch.float32, torch.tensor([[1, 2, 3]]))
    with view.plain():
        expected = batch_score(objective, view, batch).mean
    found = peers.mezo_loss(model, peers.mezo_rows(examples, classification=classification))
    assert found == pytest.approx(expected, rel=1e-5)
    assert peers.lean_loss(model, batch).item() == pytest.approx(expected, rel=1e-5)


def test_zo_adam_equals_its_dense_twin(peers: ModuleType, examples: list[Choice]) -> None:
    model = tiny.llama()
    rows = peers.mezo_rows(examples, classification=True)
    method = peers.ZoAdam(model, betas=(0.9, 0.99), eps=1e-8)
    theta = flat(model).double()
    m = v = torch.zeros_like(theta)
    for t in range(1, 5):
        c = method.step(lambda: peers.mezo_loss(model, rows), SEED + t, LR)
        g = c * drawn(model, SEED + t).double()
        m, v = 0.9 * m + 0.1 * g, 0.99 * v + 0.01 * g**2
        theta = theta - LR * (m / (1 - 0.9**t)) / ((v / (1 - 0.99**t)).sqrt() + 1e-8)
    assert (flat(model) - theta).abs().max() < 1e-5


@pytest.mark.parametrize("lora", [False, True])
def test_adamw_lowers_the_loss(peers: ModuleType, examples: list[Choice], lora: bool) -> None:
    from zoft.models.adapters import attach_adapter
    from zoft.recipe.sections.tune import TuneSection

    model = tiny.llama()
    frozen = flat(model)
    if lora:
        model = attach_adapter(model, TuneSection(method="lora"), 0)
    [batch] = micro_batches(objective_for("choice"), examples, 4, torch.device("cpu"))
    with peers.gradients(model, only="lora_" if lora else ""):
        method = peers.AdamW(model, 1e-2)
        losses = [method.step(batch) for _ in range(10)]
    assert losses[-1] < 0.8 * losses[0]
    assert not any(p.requires_grad for p in model.parameters())
    if lora:
        kept = [p.flatten() for n, p in model.named_parameters() if "lora_" not in n]
        assert torch.equal(torch.cat(kept), frozen)
