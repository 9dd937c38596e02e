"""What a probe costs beside a plain pass over as many rows: launches per layer, syncs per step."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest
import torch
from support import tiny
from support.directions import direction, directions
from support.twins import view_of
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes

from zoft.data.examples import Choice, TextExample
from zoft.engine.estimator import Estimator
from zoft.engine.kernels.cpu import sweeps as cpu
from zoft.engine.objectives.objective import batch_losses, micro_batches, objective_for
from zoft.engine.probe.view import ProbedModel

ROWS, WIDTH = 4, 9
INPUT = torch.arange(ROWS * WIDTH).view(ROWS, WIDTH) * 7 % tiny.VOCABULARY
POSITIONS = torch.tensor([3, 17, 25, 32])
KERNELS = (
    "signs", "project", "spread", "widen", "prefill", "perturb", "perturb_pair", "perturb_each",
    "perturb_rows",
)  # fmt: skip
# Operators that start nothing on a device: views and allocations.
FREE = {
    "view", "_unsafe_view", "_reshape_alias", "t", "transpose", "permute", "as_strided", "expand",
    "select", "slice", "split", "split_with_sizes", "unbind", "squeeze", "unsqueeze", "detach",
    "alias", "diagonal", "empty", "empty_like", "empty_strided", "new_empty", "lift_fresh",
}  # fmt: skip
LAYERS = {
    "opt": ("model.decoder", "layers"),
    "llama": ("model", "layers"),
    "gpt2": ("transformer", "h"),
    "qwen2": ("model", "layers"),
}


class Launches(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Counts aten's operators; `kernels` counts ours, which are no operators of aten."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.operators: Counter[str] = Counter()
        self.kernels: Counter[str] = Counter()

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        del types
        name = func._schema.name.split("::")[1]
        if name not in FREE:
            self.operators[name] += 1
        return func(*args, **(kwargs or {}))

    def watched(self, name: str) -> Callable[..., Any]:
        inner = getattr(cpu, name)

        def kernel(*args: Any, **kwargs: Any) -> Any:
            self.kernels[name] += 1
            with _disable_current_modes():  # one launch, whatever it does on a CPU
                return inner(*args, **kwargs)

        return kernel

    @property
    def all(self) -> int:
        return self.operators.total() + self.kernels.total()


def launches(call: Callable[[], None], monkeypatch: pytest.MonkeyPatch) -> Launches:
    for _ in range(3):
        call()  # allocates, draws
    counted = Launches()
    with monkeypatch.context() as patch:
        for name in KERNELS:
            patch.setattr(cpu, name, counted.watched(name))
        with counted:
            call()
    return counted


def of_a_layer(
    name: str, compute: torch.dtype, kind: str, monkeypatch: pytest.MonkeyPatch
) -> tuple[int, int, int, Counter[str]]:
    """A paired probe's launches, and a plain pass's over twice the rows, that one layer makes; its
    leaves."""
    z = "signs" if kind == "dense" else "rank1"
    examples = ROWS if kind == "example" else None
    found = []
    for layers in (1, 2):
        model = getattr(tiny, name)(dtype=compute)
        path, attribute = LAYERS[name]
        model.config.num_hidden_layers = layers
        owner = model.get_submodule(path)
        setattr(owner, attribute, getattr(owner, attribute)[:layers])
        view, _ = view_of(model, compute=compute)

        def plain(view: ProbedModel = view) -> None:
            with view.plain():
                twice = torch.cat([POSITIONS, POSITIONS + INPUT.numel()])
                view.token_losses(INPUT.repeat(2, 1), twice, twice)

        def probe(view: ProbedModel = view) -> None:
            with view.probe(direction(1, 2, 3, z), 1e-3, -1e-3, examples=examples):
                view.token_losses(INPUT, POSITIONS, POSITIONS)

        counts = (launches(probe, monkeypatch), launches(plain, monkeypatch))
        found.append((*counts, len(view.leaves)))
    (probe_1, plain_1, leaves_1), (probe_2, plain_2, leaves_2) = found
    return (
        probe_2.all - probe_1.all,
        plain_2.all - plain_1.all,
        leaves_2 - leaves_1,
        probe_2.kernels - probe_1.kernels,
    )


# Launches that a pair of signs adds to those of a plain pass over as many rows, in one layer with so
# many leaves: (float32, bfloat16, leaves). Measured; less is better.
EXTRA = {
    "llama": (17, 22, 9),
    "qwen2": (23, 25, 9),
    "opt": (40, 36, 8),
    "gpt2": (34, 38, 6),
}


@pytest.mark.parametrize("kind", ["rank1", "example"])
@pytest.mark.parametrize("compute", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", EXTRA)
def test_a_pair_of_signs_adds_few_launches_to_a_layer(
    name: str, compute: torch.dtype, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    probe, plain, leaves, kernels = of_a_layer(name, compute, kind, monkeypatch)
    *most, expected = EXTRA[name]
    assert leaves == expected
    print(name, compute, kind, probe - plain, leaves, dict(kernels))
    assert probe - plain <= most[compute == torch.bfloat16]
    # No copy of a weight is perturbed, and twins share one product with their v.
    assert not {"perturb", "perturb_pair", "perturb_rows"} & set(kernels)
    assert kernels["project"] == 4
    assert "signs" not in kernels


def test_a_dense_pair_sweeps_every_matrix_once(monkeypatch: pytest.MonkeyPatch) -> None:
    *_, kernels = of_a_layer("llama", torch.float32, "dense", monkeypatch)
    assert kernels == {"perturb_pair": 7, "perturb_each": 2}


def test_factors_are_drawn_once_a_step(monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny.llama()
    view, _ = view_of(model)
    drawn, signs = list[int](), cpu.signs

    def counted(*args: Any, step: int, **options: Any) -> None:
        drawn.append(step)
        signs(*args, step=step, **options)

    monkeypatch.setattr(cpu, "signs", counted)
    for step in (1, 2):
        for scale in (1e-3, -1e-3):
            for part in (INPUT[:2], INPUT[2:]):
                with view.probe(direction(1, step, 3, "rank1"), scale, examples=ROWS):
                    view.token_losses(part, POSITIONS[:1], POSITIONS[:1], None, [0, 1])
    assert drawn == [1, 2]


class Syncs:
    """Every time that a tensor's values are asked for by code that is no kernel."""

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        self.places: list[str] = []
        for name in ("tolist", "item", "__bool__", "__int__", "__float__", "__index__"):
            patch.setattr(torch.Tensor, name, self.watched(name))

    def watched(self, name: str) -> Callable[..., Any]:
        inner = getattr(torch.Tensor, name)

        def asked(tensor: torch.Tensor, *args: Any) -> Any:
            frame = sys._getframe(1)
            module = frame.f_globals["__name__"]
            if not module.startswith("zoft.engine.kernels"):
                self.places.append(f"{module}.{frame.f_code.co_name}")
            return inner(tensor, *args)

        return asked


# What is read in every pass: the map from positions to examples, of tensors that are on the host.
PASSES: dict[str, list[str]] = {
    "dense": [],
    "rank1": [],
    "example": ["zoft.engine.probe.head._rows"],
}


@pytest.mark.parametrize("paired", [False, True])
@pytest.mark.parametrize("kind", PASSES)
@pytest.mark.parametrize("objective", ["lm", "choice"])
def test_a_step_waits_once_for_the_device(
    objective: Any, kind: str, paired: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    view, _ = view_of(tiny.llama())
    estimator = Estimator(
        view, directions(1, "signs" if kind == "dense" else "rank1"), perturbation=1e-3, count=2,
        paired=paired, examples=ROWS if kind == "example" else None,
    )  # fmt: skip
    texts = [TextExample(tuple(range(5, 12 + i)), (3, 5)) for i in range(ROWS)]
    choices = [Choice(text.ids, ((40,), (50, 51)), i % 2) for i, text in enumerate(texts)]
    made = objective_for(objective)
    rows = choices if objective == "choice" else texts
    batches = micro_batches(made, rows, 2, torch.device("cpu"))
    with monkeypatch.context() as patch:
        syncs = Syncs(patch)
        estimator.measure(1, lambda: batch_losses(made, view, batches))
    passes = 2 * (1 if paired else 2) * len(batches)
    expected = PASSES[kind] * passes + ["zoft.engine.estimator._on_the_host"]
    assert sorted(syncs.places) == sorted(expected)


def test_what_asks_for_a_tensors_values_is_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        syncs = Syncs(patch)
        x = torch.ones(1)
        if x:
            x.tolist()
            float(x)
            nn.Identity()(x).item()
    assert len(syncs.places) == 4
