"""Rank-1 and per-example probes equal models whose weights were moved, example by example."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from support import tiny
from support.directions import direction
from support.mixing import TimeFirst
from support.twins import moved, row_by_row, view_of
from torch import Tensor, nn
from torch.nn.functional import cosine_similarity, cross_entropy
from transformers import (
    Gemma2Config,
    Gemma2ForCausalLM,
    MixtralConfig,
    MixtralForCausalLM,
    PreTrainedConfig,
)
from transformers.models.gemma2.modeling_gemma2 import Gemma2RMSNorm
from transformers.models.llama.modeling_llama import LlamaRMSNorm

from zoft.engine.probe.forwards.norms import find_norms
from zoft.engine.probe.rows import GROUP_DIRECTIONS, MixedRows, assign_rows
from zoft.engine.probe.view import ProbedModel
from zoft.models.adapters import attach_adapter
from zoft.recipe.sections.tune import TuneSection

MODELS: dict[str, Callable[..., Any]] = {
    "opt": tiny.opt,
    "llama": tiny.llama,
    "gpt2": tiny.gpt2,
    "qwen2-tied": lambda: tiny.qwen2(tie=True),
}
Z = direction(5, 3, 2, "rank1")
ROWS, WIDTH = 4, 9
INPUT = torch.arange(ROWS * WIDTH).view(ROWS, WIDTH) * 7 % tiny.VOCABULARY
POSITIONS = torch.tensor([3, 8 + 9, 7 + 18, 5 + 27, 8 + 27])  # unequally many in each row
TARGETS = torch.tensor([5, 6, 7, 8, 9])
VOCAB = torch.tensor([3, 200, 11])
MASK = (torch.arange(WIDTH) < torch.tensor([[9], [9], [8], [9]])).long()
EPSILON = 2e-2
CLOSE: dict[str, Any] = {"atol": 4e-6, "rtol": 1e-5}


def shaken(model: Any, seed: int = 0) -> Any:
    """With norms, biases and a head that are not all ones, zeros and equally likely."""
    generator = torch.Generator().manual_seed(seed)
    for parameter in model.parameters():
        if parameter.ndim == 1:
            parameter.data += 0.3 * torch.randn(parameter.shape, generator=generator)
    return model


def assert_as_row_by_row(
    model: nn.Module,
    tune: TuneSection | None = None,
    *,
    scales: Sequence[float],
    examples: Sequence[int] | None = None,
    count: int | None = None,
    mask: Tensor | None = None,
) -> ProbedModel:
    """Logits, logits of few words and losses of one pass against rows that ran alone."""
    view, _ = view_of(model, tune)
    numbers = examples if examples is not None else (list(range(ROWS)) if count else None)
    expected = row_by_row(model, tune, Z, scales, INPUT, numbers, count, mask)
    expected = expected.view(len(scales), ROWS * WIDTH, -1)[:, POSITIONS].flatten(0, 1)
    with view.probe(Z, *scales, examples=count):
        whole = view.logits(INPUT, POSITIONS, None, mask, examples)
        few = view.logits(INPUT, POSITIONS, VOCAB, mask, examples)
        losses = view.token_losses(INPUT, POSITIONS, TARGETS, mask, examples)
    wanted = cross_entropy(expected, TARGETS.repeat(len(scales)), reduction="none")
    torch.testing.assert_close(whole, expected, **CLOSE)
    torch.testing.assert_close(few, expected[:, VOCAB], **CLOSE)
    torch.testing.assert_close(losses, wanted, **CLOSE)
    with view.plain():  # and the probe was there to be seen
        still = view.logits(INPUT, POSITIONS, None, mask).repeat(len(scales), 1)
    assert (still - expected).abs().max() > 100 * (whole - expected).abs().max()
    return view


@pytest.mark.parametrize("scales", [(EPSILON,), (EPSILON, -EPSILON)], ids=["single", "paired"])
@pytest.mark.parametrize("masked", [False, True], ids=["bare", "masked"])
@pytest.mark.parametrize("name", MODELS)
def test_every_example_has_a_direction_of_its_own(
    name: str, masked: bool, scales: tuple[float, ...]
) -> None:
    mask = MASK if masked else None
    assert_as_row_by_row(shaken(MODELS[name]()), scales=scales, count=ROWS, mask=mask)


@pytest.mark.parametrize("name", MODELS)
def test_one_direction_for_the_batch(name: str) -> None:
    assert_as_row_by_row(shaken(MODELS[name]()), scales=(EPSILON, -EPSILON))


EXAMPLES = [
    ([0, 0, 1, 1], 2),  # two rows each, as options have them
    ([5, 5, 6, 6], 9),  # a micro-batch out of the middle
    ([20, 21, 22, 23], 24),  # more directions than one product takes, few of them here
    ([7, 7, 7, 7], 8),  # one example alone
    ([3, 2, 1, 0], 4),
]


@pytest.mark.parametrize("name", ["opt", "llama"])
@pytest.mark.parametrize(("examples", "count"), EXAMPLES)
def test_rows_belong_to_the_examples_that_are_named(
    name: str, examples: list[int], count: int
) -> None:
    assert_as_row_by_row(
        shaken(MODELS[name]()), scales=(EPSILON, -EPSILON), examples=examples, count=count
    )


@pytest.mark.parametrize("name", ["opt", "gpt2"])
@pytest.mark.parametrize(("examples", "count"), EXAMPLES)
def test_rows_belong_to_the_examples_that_are_named_in_low_precision(
    name: str, examples: list[int], count: int
) -> None:
    model, scales = shaken(MODELS[name]()), (0.05, -0.05)
    exact = row_by_row(model, None, Z, scales, INPUT, examples, count)
    exact = exact.view(2, ROWS * WIDTH, -1)[:, POSITIONS]
    view, _ = view_of(model, compute=torch.float16)
    with view.probe(Z, *scales, examples=count):
        found = view.logits(INPUT, POSITIONS, examples=examples).float().view_as(exact)
    agrees = cosine_similarity(found[0] - found[1], exact[0] - exact[1], dim=-1)
    assert agrees.min() > 0.999


@pytest.mark.parametrize(
    ("name", "globs"),
    [
        *[(name, ["*norm*"]) for name in ("llama", "opt", "qwen2-tied")],
        *[(name, ["*embed*"]) for name in ("llama", "opt", "qwen2-tied")],
        *[(name, ["*bias"]) for name in ("opt", "gpt2", "qwen2-tied")],
        *[("gpt2", [glob]) for glob in ("*ln_*", "*wte*", "*wpe*")],
    ],
)
def test_what_is_frozen_stays(name: str, globs: list[str]) -> None:
    model = shaken(MODELS[name]())
    tune = TuneSection(include=globs)
    assert_as_row_by_row(model, tune, scales=(EPSILON, -EPSILON), count=ROWS)


@pytest.mark.parametrize("name", MODELS)
def test_adapters_have_directions_of_their_own_for_each_example(name: str) -> None:
    tune = TuneSection(method="lora", r=4)
    model = attach_adapter(MODELS[name](), tune, seed=1)
    assert_as_row_by_row(model, tune, scales=(0.1, -0.1), count=ROWS)


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("compute", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("count", [None, ROWS], ids=["batch", "example"])
def test_low_precision_delivers_every_direction(
    name: str, compute: torch.dtype, count: int | None
) -> None:
    model, scales = shaken(MODELS[name]()), (0.05, -0.05)
    numbers = list(range(ROWS)) if count else None
    exact = row_by_row(model, None, Z, scales, INPUT, numbers, count)
    exact = exact.view(2, ROWS * WIDTH, -1)[:, POSITIONS]
    view, _ = view_of(model, compute=compute)
    with view.probe(Z, *scales, examples=count):
        logits = view.logits(INPUT, POSITIONS).float().view_as(exact)
        losses = view.token_losses(INPUT, POSITIONS, TARGETS).view(2, -1)
    for ours, theirs in zip(logits[0] - logits[1], exact[0] - exact[1], strict=True):
        agrees = cosine_similarity(ours, theirs, dim=0)
        assert agrees > (0.98 if compute == torch.bfloat16 else 0.999)
    wanted = cross_entropy(exact.flatten(0, 1), TARGETS.repeat(2), reduction="none").view(2, -1)
    torch.testing.assert_close(losses, wanted, atol=8e-2, rtol=2e-2)


@pytest.mark.parametrize("compute", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", ["opt", "llama", "gpt2"])
@pytest.mark.parametrize("rows", [GROUP_DIRECTIONS + 1, 2 * GROUP_DIRECTIONS + 3])
def test_more_examples_than_one_product_takes(name: str, compute: torch.dtype, rows: int) -> None:
    model = shaken(MODELS[name]())
    ids = (torch.arange(rows * 5).view(rows, 5) * 11) % tiny.VOCABULARY
    positions = torch.arange(rows) * 5 + torch.arange(rows) % 5
    exact = row_by_row(model, None, Z, (0.05, -0.05), ids, range(rows), rows)
    exact = exact.view(2, rows * 5, -1)[:, positions]
    view, _ = view_of(model, compute=compute)
    with view.probe(Z, 0.05, -0.05, examples=rows):
        found = view.logits(ids, positions).float().view_as(exact)
    if compute == torch.float32:
        torch.testing.assert_close(found, exact, **CLOSE)
        return
    agrees = cosine_similarity(found[0] - found[1], exact[0] - exact[1], dim=-1)
    assert agrees.min() > 0.96


# -- both signs in one pass -------------------------------------------------------------------------

KINDS = {kind: direction(5, 3, 2, kind) for kind in ("signs", "gaussian", "rank1")}


@pytest.mark.parametrize("compute", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(
    ("kind", "count"), [("signs", None), ("gaussian", None), ("rank1", None), ("rank1", ROWS)]
)
@pytest.mark.parametrize("name", MODELS)
def test_a_pair_equals_two_passes(
    name: str, kind: str, count: int | None, compute: torch.dtype
) -> None:
    view, _ = view_of(shaken(MODELS[name]()), compute=compute)

    def outputs(*scales: Any) -> list[Tensor]:
        with view.probe(KINDS[kind], *scales, examples=count):
            return [
                view.logits(INPUT, POSITIONS),
                view.logits(INPUT, POSITIONS, VOCAB),
                view.token_losses(INPUT, POSITIONS, TARGETS),
            ]

    together, plus, minus = outputs(EPSILON, -EPSILON), outputs(EPSILON), outputs(-EPSILON)
    # A product of other sizes may sum in another order: a bit or two of the type, layer after layer.
    close = CLOSE if compute == torch.float32 else {"atol": 6e-2, "rtol": 2e-2}
    for pair, *single in zip(together, plus, minus, strict=True):
        torch.testing.assert_close(pair, torch.cat(single), **close)


def test_three_scales_at_once() -> None:
    """Nothing knows that there are two signs."""
    assert_as_row_by_row(shaken(tiny.opt()), scales=(EPSILON, 0.0, -2 * EPSILON), count=ROWS)


# -- other architectures ----------------------------------------------------------------------------

SMALL: dict[str, Any] = {
    "vocab_size": tiny.VOCABULARY,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
}


def built(kind: Callable[[Any], Any], config: PreTrainedConfig) -> Any:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return shaken(kind(config).eval().requires_grad_(False))


def gemma2() -> Any:
    """Norms of 1 + weight, capped logits, embeddings times a constant."""
    return built(Gemma2ForCausalLM, Gemma2Config(**SMALL, head_dim=8, final_logit_softcapping=0.5))


def mixtral() -> Any:
    """Experts in three-dimensional tensors, read by one module for all tokens."""
    config = MixtralConfig(**SMALL, num_local_experts=4, num_experts_per_tok=2)
    return built(MixtralForCausalLM, config)


@pytest.mark.parametrize("count", [None, ROWS], ids=["batch", "example"])
def test_logits_that_are_capped_behind_the_head(count: int | None) -> None:
    view = assert_as_row_by_row(gemma2(), scales=(EPSILON, -EPSILON), count=count)
    assert not view.head_ends_the_model
    view, _ = view_of(tiny.llama())
    assert view.head_ends_the_model


@pytest.mark.parametrize("count", [None, ROWS], ids=["batch", "example"])
def test_a_mixture_of_experts(count: int | None) -> None:
    assert_as_row_by_row(mixtral(), scales=(EPSILON, -EPSILON), count=count)


def test_norms_are_recognised_by_what_they_compute() -> None:
    kinds = {LlamaRMSNorm: 1.0, nn.LayerNorm: 1.0, Gemma2RMSNorm: 0.0}
    for build, kind, count in (
        (tiny.llama, LlamaRMSNorm, 5),
        (tiny.opt, nn.LayerNorm, 5),
        (tiny.gpt2, nn.LayerNorm, 5),
        (gemma2, Gemma2RMSNorm, 9),
    ):
        model = build()
        before = {name: p.clone() for name, p in model.named_parameters()}
        view, _ = view_of(model)
        norms = find_norms(view.leaves)
        assert len(norms) == count
        assert {type(module) for module in norms} == {kind}
        assert {norm.neutral for norm in norms.values()} == {kinds[kind]}
        assert all(torch.equal(p, before[name]) for name, p in model.named_parameters())


class SquaredNorm(LlamaRMSNorm):
    """Called a norm, but not linear in its weight."""

    def forward(self, hidden_states: Tensor) -> Any:
        return super().forward(hidden_states) * self.weight


def test_what_is_only_called_a_norm_goes_the_long_way() -> None:
    model = tiny.llama()
    model.model.norm = SquaredNorm(48).requires_grad_(False)
    view = assert_as_row_by_row(shaken(model), scales=(EPSILON, -EPSILON), count=ROWS)
    assert model.model.norm not in find_norms(view.leaves)


class Owner(nn.Module):
    """Reads a matrix and a vector of its own around another module."""

    def __init__(self, inner: nn.Module, width: int) -> None:
        super().__init__()
        self.inner = inner
        self.matrix = nn.Parameter(torch.eye(width) + 0.1)
        self.vector = nn.Parameter(torch.full((width,), 1.5))

    def forward(self, x: Tensor) -> Any:
        return self.inner(x @ self.matrix) * self.vector


@pytest.mark.parametrize("count", [None, ROWS], ids=["batch", "example"])
def test_a_module_that_reads_parameters_in_its_own_way(count: int | None) -> None:
    model = shaken(tiny.llama())
    model.model.layers[0].mlp = Owner(model.model.layers[0].mlp, 48).requires_grad_(False)
    assert_as_row_by_row(model, scales=(EPSILON, -EPSILON), count=count)


@pytest.mark.parametrize("scope", [(1, None), (2, None), (1, ROWS), (2, ROWS)])
def test_rows_that_cannot_be_told_apart_are_refused(scope: tuple[int, int | None]) -> None:
    copies, count = scope
    model = tiny.llama()
    model.model.layers[1].mlp = TimeFirst(model.model.layers[1].mlp)
    view, _ = view_of(model)
    scales = (EPSILON, -EPSILON)[:copies]
    if scope == (1, None):  # all rows are alike
        expected = moved(model, None, Z, EPSILON)(input_ids=INPUT).logits.flatten(0, 1)[POSITIONS]
        with view.probe(Z, *scales):
            torch.testing.assert_close(view.logits(INPUT, POSITIONS), expected, **CLOSE)
        return
    with (
        pytest.raises(MixedRows, match=r"9 rows.*optimizer\.scope=batch"),
        view.probe(Z, *scales, examples=count),
    ):
        view.logits(INPUT, POSITIONS)
    assert all("forward" not in m.__dict__ for m in model.modules())


def test_the_order_in_which_modules_share_an_input_does_not_matter() -> None:
    """A projection that reads the input of others between them, in its own way."""

    class Between(nn.Linear):
        def forward(self, x: Tensor) -> Any:
            return super().forward(x) * 1.0

    model = tiny.llama()
    attention = model.model.layers[0].self_attn
    k_proj = Between(48, 24, bias=False)
    k_proj.weight = attention.k_proj.weight
    attention.k_proj = k_proj.requires_grad_(False)
    assert_as_row_by_row(shaken(model), scales=(EPSILON, -EPSILON), count=ROWS)


def test_a_matrix_that_two_projections_share() -> None:
    model = tiny.llama()
    attention = model.model.layers[0].self_attn
    attention.v_proj.weight = attention.k_proj.weight
    assert_as_row_by_row(shaken(model), scales=(EPSILON, -EPSILON), count=ROWS)


def test_an_input_that_is_changed_in_place_between_two_projections() -> None:
    class Doubles(nn.Module):
        def __init__(self, inner: Any) -> None:
            super().__init__()
            self.gate_proj, self.up_proj, self.down_proj, self.act_fn = (
                inner.gate_proj, inner.up_proj, inner.down_proj, inner.act_fn,
            )  # fmt: skip

        def forward(self, x: Tensor) -> Any:
            x = x.clone()
            gate = self.act_fn(self.gate_proj(x))
            return self.down_proj(gate * self.up_proj(x.mul_(2)))

    model = tiny.llama()
    model.model.layers[0].mlp = Doubles(model.model.layers[0].mlp)
    assert_as_row_by_row(shaken(model), scales=(EPSILON, -EPSILON), count=ROWS)


def test_an_input_that_all_rows_share_inside_a_module_that_runs_for_each() -> None:
    class Tail(nn.Module):
        def __init__(self, width: int) -> None:
            super().__init__()
            self.linear = nn.Linear(width, width)
            self.matrix = nn.Parameter(torch.eye(width) + 0.1)

        def forward(self, table: Tensor) -> Any:
            return self.linear(table) @ self.matrix

    class Positions(nn.Module):
        def __init__(self, inner: nn.Module, width: int) -> None:
            super().__init__()
            self.inner, self.tail = inner, Tail(width)
            self.table: Tensor
            self.register_buffer("table", torch.linspace(-1, 1, 12 * width).view(1, 12, width))

        def forward(self, x: Tensor) -> Any:
            return self.inner(x) + self.tail(self.table[:, : x.shape[1]])

    model = tiny.llama()
    model.model.layers[0].mlp = Positions(model.model.layers[0].mlp, 48).requires_grad_(False)
    assert_as_row_by_row(shaken(model), scales=(EPSILON, -EPSILON), count=ROWS)


# -- rows -------------------------------------------------------------------------------------------


def test_products_take_runs_in_order_and_few_directions_each() -> None:
    def products(which: list[int]) -> list[tuple[int, int]]:
        rows = assign_rows(len(which), which, [1.0] * len(which), torch.device("cpu"))
        for part in rows.groups:
            assert len(part.directions) <= GROUP_DIRECTIONS
            found = [part.directions[place] for place in part.which.tolist()]
            assert found == list(which[part.begin : part.end])
        return [(part.begin, part.end) for part in rows.groups]

    assert products([0, 0, 3, 0]) == [(0, 4)]
    assert products(list(range(GROUP_DIRECTIONS)) * 2) == [(0, 2 * GROUP_DIRECTIONS)]
    assert products(list(range(GROUP_DIRECTIONS + 2)) * 2) == [(0, 16), (16, 32), (32, 36)]


def test_a_probe_leaves_no_byte_changed() -> None:
    model = shaken(tiny.opt())
    before = copy.deepcopy(model.state_dict())
    view, _ = view_of(model, compute=torch.bfloat16)
    with view.probe(Z, EPSILON, -EPSILON, examples=ROWS):
        view.token_losses(INPUT, POSITIONS, TARGETS)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
