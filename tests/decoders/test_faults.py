"""The campaign's checks fail where they should: each fault that was silent once is put back."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, cast

import pytest
import torch
from support.decoders import probes
from support.decoders.findings import Findings, Wrong
from support.decoders.models import build, wide_mamba
from support.decoders.probes import LONG, Subject
from torch import Tensor, nn

from zoft.engine.kernels.cpu import sweeps
from zoft.engine.probe.forwards import generic
from zoft.engine.probe.leaves import Leaf
from zoft.engine.probe.rows import RowAssignment
from zoft.engine.probe.watched_pass import WatchedPass
from zoft.recipe.sections.tune import TuneSection


def test_an_input_that_is_a_view(monkeypatch: pytest.MonkeyPatch) -> None:
    """A kernel that takes a pointer reads it in memory's order."""
    monkeypatch.setattr(RowAssignment, "vectors", lambda _, x: x.reshape(-1, x.shape[-1]))
    monkeypatch.setattr(sweeps, "_pointer", lambda x: x.data_ptr(), raising=False)
    monkeypatch.setattr(probes, "_as_a_run_would", lambda *_: None)
    subject = Subject.of(wide_mamba(), TuneSection())
    with probes.using_threads(2), pytest.raises(Wrong, match="by hand"):
        probes.check_slopes(subject, "rank1", "example", paired=False, task="lm", examples=LONG)


def test_weights_that_a_forward_pass_writes() -> None:
    subject = Subject.of(build("llama"), TuneSection())
    weight = next(subject.model.parameters())

    def halve(*_: object) -> None:
        weight.data.div_(2)

    found = Findings()
    with subject.model.register_forward_pre_hook(halve):
        probes.check(found, "full", subject)
    assert any(x.check == "full: weights as they were" for x in found.of("wrong"))


def test_rows_cut_from_what_has_none(monkeypatch: pytest.MonkeyPatch) -> None:
    """Llama 4 hands its experts all rows once for each of them."""

    def cut(x: Any, *more: Any) -> Any:
        rows, i = more[-2:]
        whole = not isinstance(x, Tensor) or x.ndim == 0 or x.shape[0] == 1
        return x if whole else torch.chunk(x, len(rows))[i]

    monkeypatch.setattr(generic, "_rows_of_run", cut)
    monkeypatch.setattr(probes, "_as_a_run_would", lambda *_: None)
    _expect_wrong("llama4_text", "dense", paired=True)


def test_a_parameter_that_is_moved_and_never_perturbed(monkeypatch: pytest.MonkeyPatch) -> None:
    """AFMoE hands a bias to the child that reads it; the child found the argument taken."""
    real = Leaf.run_with

    def run_with(
        self: Leaf, tensors: Sequence[Tensor], forward: Callable[..., Any], *args: Any, **more: Any
    ) -> Any:
        bias = [ref.parameter if ref.name == "expert_bias" else None for ref in self.refs]
        kept = [t if b is None else b for b, t in zip(bias, tensors, strict=True)]
        return real(self, kept, forward, *args, **more)

    monkeypatch.setattr(Leaf, "run_with", run_with)
    _expect_wrong("afmoe", "dense", paired=False)


def test_a_parameter_read_inside_anothers_read(monkeypatch: pytest.MonkeyPatch) -> None:
    """DBRX's experts hand slices of a weight to a child that reads it, too: after the first expert
    theta itself was put back, and not what stood there."""

    def run_with(
        self: Leaf, tensors: Sequence[Tensor], forward: Callable[..., Any], *args: Any, **more: Any
    ) -> Any:
        places = [(ref.owner._parameters, ref.name, ref.parameter) for ref in self.refs]
        try:
            for (there, name, _), tensor in zip(places, tensors, strict=True):
                there[name] = cast("nn.Parameter", tensor)
            return forward(*args, **more)
        finally:
            for there, name, parameter in places:
                there[name] = parameter

    def innermost(self: WatchedPass, _parameter: Tensor) -> nn.Module:
        return self.running[-1][0]

    monkeypatch.setattr(Leaf, "run_with", run_with)
    monkeypatch.setattr(WatchedPass, "_reader", innermost)
    _expect_wrong("dbrx", "dense", paired=False)


@pytest.mark.parametrize("name", ["falcon_mamba", "jamba", "zamba", "recurrent_gemma"])
def test_an_input_that_is_a_view_in_other_families(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Tiny ones are read right or wrong in memory's order as their widths fall; that a kernel is handed
    such an input at all is the fault, and it refuses."""
    monkeypatch.setattr(RowAssignment, "vectors", lambda _, x: x.reshape(-1, x.shape[-1]))
    monkeypatch.setattr(probes, "_as_a_run_would", lambda *_: None)
    subject = Subject.of(build(name), TuneSection())
    with probes.using_threads(2), pytest.raises((AssertionError, ValueError, RuntimeError)):
        probes.check_slopes(
            subject, "rank1", "example", paired=False, task="lm", examples=LONG, rows=1
        )


def _expect_wrong(name: str, structure: str, *, paired: bool) -> None:
    subject = Subject.of(build(name), TuneSection())
    with probes.using_threads(1), pytest.raises(Wrong, match="by hand"):
        probes.check_slopes(subject, structure, "batch", paired=paired, task="lm")
