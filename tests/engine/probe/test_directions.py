"""Directions are functions of their address: the same values however they are asked for."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from support.directions import direction

from zoft.engine.kernels import reference
from zoft.engine.kernels.cpu import sweeps as cpu
from zoft.engine.probe.structures.factors import Factors
from zoft.engine.probe.structures.table import values_of
from zoft.system.philox import PURPOSE_U, PURPOSE_V

CPU = torch.device("cpu")


def factors_of(
    groups: list[list[tuple[int, int, int]]], ks: Sequence[int], *, seed: int = 3, step: int = 4
) -> Factors:
    factors = Factors(groups, CPU)
    factors.draw(seed, step, tuple(ks))
    return factors


@pytest.mark.parametrize("shape", [(1, 1), (1, 300), (300, 1), (37, 283)])
def test_rank_one_values_are_the_outer_product_of_literal_signs(shape: tuple[int, int]) -> None:
    table = [[9, PURPOSE_U, shape[0], 0], [9, PURPOSE_V, shape[1], shape[0]]]
    out = torch.empty(sum(shape), dtype=torch.int8)
    reference.signs(out, torch.tensor(table), seed=3, step=4, ks=torch.tensor([5]))
    u, v = out[: shape[0]], out[shape[0] :]
    z = values_of(direction(3, 4, 5, "rank1"), torch.empty(shape), 9)
    assert torch.equal(z, u[:, None].float() * v)


@pytest.mark.parametrize("shape", [(7,), (3, 5, 11)])
def test_what_is_no_matrix_has_a_dense_direction_all_the_same(shape: tuple[int, ...]) -> None:
    values = [
        values_of(direction(3, 4, 5, kind), torch.empty(shape), 9) for kind in ("signs", "rank1")
    ]
    assert torch.equal(*values)


@given(
    shapes=st.lists(st.tuples(st.integers(1, 300), st.integers(1, 300)), min_size=1, max_size=4),
    ks=st.lists(st.integers(0, 2**24 - 1), min_size=1, max_size=5, unique=True),
)
def test_factors_drawn_together_are_those_drawn_alone(
    shapes: list[tuple[int, int]], ks: list[int]
) -> None:
    groups = [
        [(i, PURPOSE_U, rows), (i, PURPOSE_V, columns)] for i, (rows, columns) in enumerate(shapes)
    ]
    factors = factors_of(groups, ks)
    for param, shape in enumerate(shapes):
        u, v = factors.u(param), factors.v(param)
        assert (u.shape, v.shape) == ((len(ks), shape[0]), (len(ks), shape[1]))
        for i, k in enumerate(ks):
            z = values_of(direction(3, 4, k, "rank1"), torch.empty(shape), param)
            assert torch.equal(z, torch.outer(u[i].float(), v[i].float()))


def test_factors_of_a_group_stand_side_by_side() -> None:
    group = [(param, PURPOSE_V, 300) for param in (8, 2, 5)]
    factors = factors_of([[(1, PURPOSE_V, 40)], group, [(3, PURPOSE_U, 7)]], (0, 6))
    together = factors.side_by_side([8, 2, 5], PURPOSE_V)
    assert together.shape == (3, 2, 300)
    assert all(torch.equal(together[i], factors.v(param)) for i, param in enumerate((8, 2, 5)))


def test_factors_are_drawn_again_for_another_step_seed_or_set_of_directions() -> None:
    factors = Factors([[(1, PURPOSE_U, 256)]], CPU)
    seen = set()
    for seed, step, ks in (
        (0, 1, (0, 1)),
        (0, 2, (0, 1)),
        (1, 1, (0, 1)),
        (0, 1, (2, 3)),
        (0, 1, (0,)),
    ):
        factors.draw(seed, step, ks)
        seen.add(bytes(factors.u(1)[0].numpy()))
        before = factors.u(1)
        factors.draw(seed, step, ks)
        assert factors.u(1).data_ptr() == before.data_ptr()
    assert len(seen) == 4  # the last is the first again


def test_factors_whose_drawing_was_interrupted_are_drawn_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    factors = factors_of([[(1, PURPOSE_U, 256)]], (0, 1))
    before, draw = factors.u(1).clone(), cpu.signs

    def interrupted(out: torch.Tensor, *args: Any, **address: Any) -> None:
        draw(out, *args, **address)
        raise KeyboardInterrupt

    monkeypatch.setattr(cpu, "signs", interrupted)
    with pytest.raises(KeyboardInterrupt):
        factors.draw(3, 5, (0, 1))
    monkeypatch.undo()
    factors.draw(3, 4, (0, 1))
    assert torch.equal(factors.u(1), before)
