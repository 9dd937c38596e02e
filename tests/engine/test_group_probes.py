"""What probes find in groups of weights, held against autograd, and what is a group."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest
import torch
from support import tiny
from support.directions import directions
from torch import Tensor, nn

from zoft.engine.estimator import Estimator, Losses
from zoft.engine.group_probes import (
    Probed,
    groups_of,
    jackknife,
    losses_at_rest,
    probe_weights,
)
from zoft.engine.objectives.batch import Forward
from zoft.engine.optimizers.update import Tuned, tuned_weights
from zoft.engine.probe.view import ProbedModel
from zoft.models.adapters import attach_adapter
from zoft.models.trainable import parameter_ids, tuned_parameters
from zoft.recipe.sections.tune import TuneSection

ROWS, TOKENS, DIRECTIONS = 4, 6, 400
INPUT = torch.arange(ROWS * TOKENS).view(ROWS, TOKENS) ** 2 * 11 % tiny.VOCABULARY
POSITIONS = torch.arange(ROWS * TOKENS)


def losses(model: Forward) -> Losses:
    """Each row is an example, of the tokens at all its places."""
    found = model.token_losses(INPUT, POSITIONS, INPUT.flatten()).double()
    weights = torch.full((ROWS,), float(TOKENS), dtype=torch.float64)
    return Losses(found.view(-1, ROWS, TOKENS).sum(-1), weights)


def estimator_of(model: nn.Module, kind: str = "signs", *, paired: bool = False) -> Estimator:
    tuned = tuned_parameters(model, TuneSection())
    view = ProbedModel(model, tuned, parameter_ids(tuned), torch.float32, INPUT[:1])
    # A run's examples have directions of their own; here all share one.
    examples = ROWS if kind == "rank1" else None
    return Estimator(view, directions(5, kind), 3e-3, examples=examples, paired=paired)


def found_in(estimator: Estimator, weights: Sequence[nn.Parameter], count: int) -> Probed:
    """What so many directions find on one batch."""
    part = replace(estimator, view=estimator.view.only(set(weights)))
    [rest] = losses_at_rest(estimator, [losses])
    return probe_weights(part, [losses] * count, [rest] * count)


def exact(model: nn.Module, weights: Sequence[nn.Parameter]) -> tuple[float, float, float]:
    """gamma, over pairs of different rows, Gamma and the trace of the Hessian, by autograd."""
    model.requires_grad_(True)
    with torch.enable_grad():
        logits = model(input_ids=INPUT).logits.flatten(0, 1)
        each = nn.functional.cross_entropy(logits, INPUT.flatten(), reduction="none")
        rows = each.view(ROWS, TOKENS).mean(1)
        gradients = [_flat(torch.autograd.grad(row, weights, retain_graph=True)) for row in rows]
        whole = _flat(torch.autograd.grad(rows.mean(), weights, create_graph=True))
        second = torch.stack(
            [
                _flat(torch.autograd.grad(x, weights, retain_graph=True, materialize_grads=True))[i]
                for i, x in enumerate(whole)
            ]
        )
    model.requires_grad_(False)
    products = torch.stack(gradients) @ torch.stack(gradients).T
    energy = products.trace()
    signal = (products.sum() - energy) / (ROWS * (ROWS - 1))
    return float(signal), float(energy / ROWS), float(second.sum())


def _flat(tensors: Sequence[Tensor]) -> Tensor:
    return torch.cat([x.flatten() for x in tensors])


# -- the measurement ------------------------------------------------------------------------------


@pytest.mark.parametrize(("kind", "paired"), [("signs", False), ("rank1", True)])
@pytest.mark.parametrize("names", [("norm",), ("down_proj",)])
def test_signal_energy_and_curvature_are_those_of_autograd(
    kind: str, paired: bool, names: tuple[str, ...]
) -> None:
    model = tiny.llama(
        hidden_size=8, intermediate_size=8, num_attention_heads=2, num_key_value_heads=1
    )
    model.set_attn_implementation("eager")  # the others have no second derivative
    model.lm_head.weight.mul_(20)  # losses that differ from row to row
    estimator = estimator_of(model, kind, paired=paired)
    weights = [p for name, p in model.named_parameters() if any(x in name for x in names)]
    probed = found_in(estimator, weights, DIRECTIONS)
    assert probed.rows == ROWS
    errors = probed.samples.std(0, ddof=1) / math.sqrt(DIRECTIONS)
    for value, true, error in zip(probed.means, exact(model, weights), errors, strict=True):
        assert abs(value - true) < 4 * error
        assert error < 0.4 * abs(true)


def test_only_the_groups_weights_are_moved_and_none_is_written() -> None:
    model = tiny.llama()
    estimator = estimator_of(model, "rank1")
    [name, weight] = next(
        x for x in model.named_parameters() if x[0].endswith("1.mlp.down_proj.weight")
    )
    before = [p.clone() for p in model.parameters()]
    found = found_in(estimator, [weight], 3)
    assert _tuned(estimator.view.only({weight})) == {weight}
    assert len(_tuned(estimator.view)) == len(before)
    ids = parameter_ids(tuned_parameters(model, TuneSection()))
    alone = ProbedModel(model, {name: weight}, ids, torch.float32, INPUT[:1])
    again = replace(estimator, view=alone)
    expected = probe_weights(again, [losses] * 3, losses_at_rest(again, [losses] * 3))
    np.testing.assert_allclose(found.samples[:, :2], expected.samples[:, :2], rtol=1e-3)
    assert all(torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True))


def _tuned(view: ProbedModel) -> set[nn.Parameter]:
    return {ref.parameter for leaf in view.leaves for ref in leaf.refs if ref.param is not None}


# -- what follows from it -------------------------------------------------------------------------


def probed(signal: float, energy: float, curvature: float, rows: int = 8) -> Probed:
    """Sixteen directions around these means."""
    swing = 1 + 0.1 * np.resize([1.0, -1.0], (16, 1))
    return Probed(np.array([signal, energy, curvature]) * swing, rows)


def test_a_group_of_twice_the_signal_gains_four_times_as_much() -> None:
    whole, part = probed(4.0, 12.0, 100.0), probed(8.0, 12.0, 100.0)
    found = part.gain_beside(whole)
    assert found is not None
    assert found[0] == pytest.approx(4)
    assert whole.gain_beside(whole) == pytest.approx((1, 0))


def test_the_noise_scale_is_the_variance_of_rows_over_the_signal() -> None:
    assert probed(4.0, 12.0, 100.0).noise_scale[0] == pytest.approx(2)


def test_what_cannot_be_told_from_zero_is_known() -> None:
    nothing = probed(0.1, 12.0, 100.0)
    assert not nothing.has_signal
    least, error = nothing.noise_scale
    assert math.isinf(error)
    assert least == pytest.approx(12 / (0.1 + nothing.chance) - 1)
    assert nothing.gain_beside(probed(4.0, 12.0, 100.0)) is None
    flat = probed(4.0, 12.0, -1.0)
    assert flat.has_signal
    assert not flat.has_curvature
    assert flat.gain_beside(probed(4.0, 12.0, 100.0)) is None


def test_rows_of_unrelated_gradients_rarely_have_a_signal() -> None:
    random = np.random.default_rng(0)
    seen = []
    for _ in range(400):
        slopes = random.normal(size=(16, 8))
        energy = (slopes**2).mean(1)
        signal = (8 * slopes.mean(1) ** 2 - energy) / 7
        seen.append(Probed(np.stack([signal, energy, energy], 1), 8).has_signal)
    assert 0 < sum(seen) < 0.08 * 400


def test_the_jackknife_of_a_mean_is_its_standard_error() -> None:
    found = Probed(np.random.default_rng(0).normal(size=(16, 3)), 8)
    value, error = jackknife(lambda samples: float(samples[:, 0].mean()), found)
    assert value == pytest.approx(found.means[0])
    assert error == pytest.approx(found.samples[:, 0].std(ddof=1) / 4)


# -- groups ---------------------------------------------------------------------------------------


def grouped(model: nn.Module, **tune: object) -> dict[str, list[Tuned]]:
    tuned = tuned_parameters(model, TuneSection.model_validate(tune))
    return groups_of(model, tuned_weights(tuned, parameter_ids(tuned), set()))


def test_groups_are_kinds_of_modules_in_thirds_of_the_blocks() -> None:
    model = tiny.llama(num_hidden_layers=7, attention_bias=True, tie=True)
    groups = grouped(model)
    assert [x.name for x in groups["q_proj first"]] == [
        f"model.layers.{i}.self_attn.q_proj.{own}" for i in range(3) for own in ("weight", "bias")
    ]
    assert len(groups["down_proj middle"]) == len(groups["down_proj last"]) == 2
    assert len(groups["norms first"]) == 6
    assert [x.name for x in groups["norms outside"]] == ["model.norm.weight"]
    assert [x.name for x in groups["embeddings outside"]] == ["model.embed_tokens.weight"]
    assert len(groups) == 3 * 8 + 2
    assert sum(map(len, groups.values())) == len(tuned_parameters(model, TuneSection()))


def test_an_adapter_counts_as_the_module_that_it_is_for() -> None:
    tune = TuneSection.model_validate({"method": "lora", "target_modules": ["q_proj", "v_proj"]})
    groups = grouped(attach_adapter(tiny.llama(num_hidden_layers=3), tune, 0), method="lora")
    kinds, places = ("q_proj", "v_proj"), ("first", "middle", "last")
    assert set(groups) == {f"{kind} {place}" for kind in kinds for place in places}
    assert all(len(weights) == 2 for weights in groups.values())
