"""A probe equals the model with its weights moved, and leaves no trace."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from support import tiny
from support.directions import direction
from support.twins import moved, view_of
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from zoft.engine.probe.rows import assign_rows
from zoft.engine.probe.structures.table import values_of
from zoft.engine.probe.view import ProbedModel
from zoft.errors import RecipeError
from zoft.models.adapters import attach_adapter
from zoft.recipe.sections.tune import TuneSection

MODELS: dict[str, Callable[..., Any]] = {
    "opt": tiny.opt,
    "llama": tiny.llama,
    "gpt2": tiny.gpt2,
    "qwen2-tied": lambda: tiny.qwen2(tie=True),
}
Z, RANK1 = direction(5, 3, 1), direction(5, 3, 1, "rank1")
INPUT = torch.arange(24).view(3, 8) * 7 % tiny.VOCABULARY
POSITIONS = torch.tensor([3, 7, 12, 23])


def bytes_of(model: nn.Module) -> dict[str, Tensor]:
    return {name: p.detach().clone() for name, p in model.named_parameters()}


@pytest.mark.parametrize("kind", ["signs", "gaussian", "rank1"])
@pytest.mark.parametrize("name", MODELS)
def test_a_probe_equals_the_moved_model_on_every_layer(name: str, kind: str) -> None:
    model = MODELS[name]()
    z = direction(5, 3, 1, kind)
    twin = moved(model, TuneSection(), z, 1e-2)
    view, tuned = view_of(model)
    read = {ref.parameter for leaf in view.leaves for ref in leaf.refs}
    assert read == set(tuned.values())  # every tuned parameter is reached
    outputs: dict[str, list[torch.Tensor]] = {}

    def record(key: str) -> Callable[..., None]:
        def hook(_module: nn.Module, _inputs: Any, output: Any) -> None:
            outputs.setdefault(key, []).append(output[0] if isinstance(output, tuple) else output)

        return hook

    for m in (model, twin):
        for key, module in m.named_modules():
            if (
                key
                and not isinstance(module, nn.ModuleList)
                and module is not m.get_submodule("lm_head")
            ):
                module.register_forward_hook(record(key))
    with view.probe(z, 1e-2):
        logits = view.logits(INPUT, POSITIONS)
    with torch.no_grad():
        expected = twin(input_ids=INPUT).logits.reshape(-1, tiny.VOCABULARY)[POSITIONS]
    assert len(outputs) > 10
    for key, (ours, theirs) in outputs.items():
        torch.testing.assert_close(ours, theirs, atol=2e-6, rtol=1e-5, msg=key)
    torch.testing.assert_close(logits, expected, atol=2e-6, rtol=1e-5)


@pytest.mark.parametrize("name", MODELS)
def test_lora_is_probed_alone(name: str) -> None:
    model = attach_adapter(MODELS[name](), TuneSection(method="lora", r=4), seed=1)
    tune = TuneSection(method="lora", r=4)
    before = bytes_of(model)
    expected = moved(model, tune, Z, 0.1)(input_ids=INPUT).logits.reshape(-1, tiny.VOCABULARY)
    view, tuned = view_of(model, tune)
    assert all("lora_" in key for key in tuned)
    with view.probe(Z, 0.1):
        logits = view.logits(INPUT, POSITIONS)
    torch.testing.assert_close(logits, expected[POSITIONS], atol=2e-6, rtol=1e-5)
    assert all(torch.equal(p, before[key]) for key, p in model.named_parameters())


@pytest.mark.parametrize("name", MODELS)
def test_few_rows_of_the_head_equal_the_whole_head(name: str) -> None:
    view, _ = view_of(MODELS[name]())
    vocab = torch.tensor([3, 200, 11])
    for z, *scales in (
        (None, 0.0), (Z, 1e-2), (Z, -1e-2), (Z, 1e-2, -1e-2), (RANK1, 1e-2), (RANK1, 1e-2, -1e-2),
    ):  # fmt: skip
        with view.probe(z, *scales):
            whole = view.logits(INPUT, POSITIONS)
            few = view.logits(INPUT, POSITIONS, vocab)
        torch.testing.assert_close(few, whole[:, vocab], atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("rank1", [False, True])
@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("compute", [torch.bfloat16, torch.float16])
def test_low_precision_passes_deliver_the_perturbation(
    name: str, compute: torch.dtype, rank1: bool
) -> None:
    model = MODELS[name]()
    view, _ = view_of(model, compute=compute)
    before = bytes_of(model)

    def change(probe_view: ProbedModel, scale: float = 0.05) -> Tensor:
        passes = []
        for s in (scale, -scale):
            with probe_view.probe(RANK1 if rank1 else Z, s):
                passes.append(probe_view.logits(INPUT, POSITIONS).float())
        return passes[0] - passes[1]

    exact = change(view_of(copy.deepcopy(model))[0])
    ours = change(view)
    # The direction of the change is right to the type's accuracy.
    cosine = nn.functional.cosine_similarity(ours.flatten(), exact.flatten(), dim=0)
    assert cosine > (0.98 if compute == torch.bfloat16 else 0.999)
    assert all(torch.equal(p, before[key]) for key, p in model.named_parameters())
    assert all(p.dtype == torch.float32 for p in model.parameters())


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("rank1", [False, True])
@pytest.mark.parametrize("name", MODELS)
def test_the_whole_stream_is_in_the_compute_type(name: str, rank1: bool, masked: bool) -> None:
    model = MODELS[name]()
    view, _ = view_of(model, compute=torch.bfloat16)
    seen = {}

    def hook(module: nn.Module, inputs: Any, _output: Any) -> None:
        seen[type(module).__name__] = inputs[0].dtype

    kinds = (nn.Linear, nn.LayerNorm)
    handles = [
        m.register_forward_hook(hook)
        for m in model.modules()
        if (isinstance(m, kinds) or "Norm" in type(m).__name__ or "Conv1D" in type(m).__name__)
    ]
    mask = torch.ones_like(INPUT) if masked else None
    with view.probe(RANK1 if rank1 else Z, 1e-2, -1e-2, examples=3 if rank1 else None):
        view.logits(INPUT, POSITIONS, None, mask)
    for handle in handles:
        handle.remove()
    assert len(seen) >= 2
    assert set(seen.values()) == {torch.bfloat16}, seen


def test_norms_are_perturbed_in_float32() -> None:
    model = tiny.llama()
    tune = TuneSection(include=["*norm*"])
    view, _ = view_of(model, tune, torch.bfloat16)
    norm = model.model.norm
    hidden = torch.ones(1, 1, norm.weight.numel(), dtype=torch.bfloat16)
    with view.probe(Z, 1e-3):  # bfloat16 would round 1.001 back to 1
        leaf = next(x for x in view.leaves if x.module is norm)
        with view.parameters.narrowed(assign_rows(1, (0,), (1e-3,), hidden.device)):
            seen = view.parameters.perturbed(leaf.refs[0], torch.float32).clone()
        assert norm(hidden).dtype == torch.bfloat16
    assert leaf.refs[0].param is not None
    assert torch.equal((seen - 1).sign(), values_of(Z, norm.weight, leaf.refs[0].param).sign())


class Interrupts(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Raises at the `at`-th operator, as Ctrl-C may."""

    def __init__(self, at: int, error: type[BaseException]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.at, self.error, self.seen = at, error, 0

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        del types
        self.seen += 1
        if self.seen == self.at:
            raise self.error
        return func(*args, **(kwargs or {}))


PASSES = {
    "dense": (Z, (1e-2,), None),
    "dense paired": (Z, (1e-2, -1e-2), None),
    "rank1 paired": (RANK1, (1e-2, -1e-2), None),
    "examples": (RANK1, (1e-2, -1e-2), 3),
}


@pytest.mark.parametrize("kind", PASSES)
@pytest.mark.parametrize("compute", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("error", [KeyboardInterrupt, ValueError])
@pytest.mark.parametrize("name", MODELS)
def test_whatever_is_raised_inside_everything_is_put_back(
    name: str, error: type[BaseException], compute: torch.dtype, kind: str
) -> None:
    model = MODELS[name]()
    view, _ = view_of(model, compute=compute)
    z, scales, examples = PASSES[kind]
    before = bytes_of(model)
    modules = {key: (dict(m.__dict__), dict(m._parameters)) for key, m in model.named_modules()}

    def losses() -> Tensor:
        with view.probe(z, *scales, examples=examples):
            return view.token_losses(INPUT, POSITIONS, POSITIONS)

    expected = [losses() for _ in range(3)][-1]  # the first passes also draw and allocate
    with Interrupts(0, error) as whole:
        losses()
    for at in range(5, whole.seen, whole.seen // 9):  # norms, products, the head: anywhere
        with Interrupts(at, error), pytest.raises(error):
            losses()
        assert all(torch.equal(p, before[key]) for key, p in model.named_parameters())
        for key, module in model.named_modules():
            there, parameters = modules[key]
            assert set(module.__dict__) == set(there)
            assert "forward" not in module.__dict__
            assert set(module._parameters) == set(parameters)
            assert all(module._parameters[name] is p for name, p in parameters.items())
        assert view.parameters.probe.scratch.mark() == 0
    assert torch.equal(losses(), expected)  # and it can be used again


def test_a_probe_outside_or_inside_another_is_refused() -> None:
    view, _ = view_of(tiny.llama())
    with pytest.raises(RuntimeError, match="outside"):
        view.logits(INPUT, POSITIONS)
    with view.plain(), pytest.raises(RuntimeError, match="nest"), view.plain():
        pass


def test_a_parameter_that_nothing_reads_is_a_clear_error() -> None:
    model = tiny.llama()
    model.model.unused = nn.Linear(4, 4, bias=False)
    with pytest.raises(RecipeError, match=r"model\.unused\.weight.*tune\.exclude"):
        view_of(model)
    view, _ = view_of(model, TuneSection(exclude=["*unused*"]))
    with view.probe(Z, 1e-2):
        assert view.logits(INPUT, POSITIONS).shape == (4, tiny.VOCABULARY)


class ReadsItsChild(nn.Module):
    """As Mamba does: the parent multiplies with the weight of a child that never runs."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner
        self.scale = nn.Module()
        self.scale.weight = nn.Parameter(torch.full((48,), 1.5))

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return self.inner(*args, **kwargs) * self.scale.weight


def test_a_vector_in_a_container_that_never_runs_is_reached() -> None:
    model = tiny.llama()
    model.model.layers[0].mlp = ReadsItsChild(model.model.layers[0].mlp).requires_grad_(False)
    twin = moved(model, TuneSection(), Z, 1e-2)
    view, _ = view_of(model)
    with view.probe(Z, 1e-2):
        logits = view.logits(INPUT, POSITIONS)
    expected = twin(input_ids=INPUT).logits.reshape(-1, tiny.VOCABULARY)[POSITIONS]
    torch.testing.assert_close(logits, expected, atol=2e-6, rtol=1e-5)


def test_nothing_is_allocated_after_the_first_pass() -> None:
    view, _ = view_of(tiny.llama())
    for _ in range(2):
        with view.probe(Z, 1e-2):
            view.logits(INPUT, POSITIONS)
    arena = view.parameters.probe.scratch._arena
    assert arena.numel() > 0
    with view.probe(Z, -1e-2):
        view.logits(INPUT, POSITIONS)
    assert view.parameters.probe.scratch._arena is arena
