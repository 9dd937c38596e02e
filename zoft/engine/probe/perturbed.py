"""Perturbed parameters theta + scale * z, built lazily for each group of rows."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor

from zoft.engine.kernels.dispatch import kernels_for
from zoft.engine.probe.directions import Direction, OpenProbe, Perturbation, Structure
from zoft.engine.probe.leaves import Leaf, ParameterRef
from zoft.engine.probe.rows import RowAssignment, assign_rows
from zoft.engine.probe.scratch import Scratch
from zoft.engine.probe.structures.dense import DensePerturbation
from zoft.engine.probe.structures.table import DENSE, structure_of


class PerturbedParameters:
    """The parameters that the leaves read, at the point of the open probe.

    Whatever it returns may be a tensor in `probe.scratch`, valid until the caller releases it.
    """

    def __init__(
        self, leaves: Sequence[Leaf], compute_dtype: torch.dtype, device: torch.device
    ) -> None:
        self.leaves, self.compute_dtype = leaves, compute_dtype
        self.probe = OpenProbe(Scratch(device), assign_rows(1, (0,), (0.0,), device))
        self.dense = DensePerturbation(self.probe)
        self._perturbations: dict[Structure, Perturbation] = {DENSE: self.dense}

    @property
    def rows(self) -> RowAssignment:
        """The rows of the pass."""
        return self.probe.rows

    def open(self, direction: Direction | None, examples: int | None) -> None:
        """Show the point along `direction`. With `examples` B, example i has direction k * B + i
        (docs/methods.md#per-example-directions); else all have k."""
        probe = self.probe
        probe.direction = direction
        if direction is None:
            return
        first = direction.k * (examples or 1)
        probe.ks = tuple(range(first, first + (examples or 1)))
        structure = direction.directions.structure
        if structure not in self._perturbations:
            self._perturbations[structure] = structure.perturbation(probe, self.leaves)
        self._perturbations[structure].draw()

    def close(self) -> None:
        """Show theta itself, and let go of what was kept for the passes."""
        for perturbation in self._perturbations.values():
            perturbation.release()
        self.probe.scratch.release(0)
        self.probe.direction = None

    @contextmanager
    def narrowed(self, rows: RowAssignment) -> Iterator[None]:
        """Inside, the pass has these rows only."""
        before, self.probe.rows = self.probe.rows, rows
        try:
            yield
        finally:
            self.probe.rows = before

    def is_tuned(self, ref: ParameterRef | None) -> bool:
        """Whether the open probe perturbs the parameter."""
        return self.probe.is_tuned(ref)

    def perturbation(self, ref: ParameterRef | None) -> Perturbation:
        """What shows the parameter: dense where nothing moves it or its structure does not cover it."""
        direction = self.probe.direction
        if ref is None or ref.param is None or direction is None:
            return self.dense
        return self._perturbations[structure_of(ref.parameter, direction.directions.structure)]

    def perturbed(self, ref: ParameterRef, dtype: torch.dtype) -> Tensor:
        """The parameter as the first run sees it."""
        return self.perturbation(ref).materialise(ref, dtype, 0, None)

    def vectors(self, ref: ParameterRef) -> Tensor:
        """A vector as every run sees it: (runs, C) float32, or (1, C) where they see the same.

        Vectors have dense directions in every structure.
        """
        weight, probe = ref.parameter.detach(), self.probe
        if not probe.is_tuned(ref):
            return weight.float()[None]
        assert probe.direction is not None
        assert ref.param is not None
        out = probe.scratch.take((len(probe.rows), weight.numel()), torch.float32)
        directions = probe.direction.directions
        if directions.gaussian:
            for run, scale in enumerate(probe.rows.scales):
                probe.direction_of(run).perturb(out[run], weight, ref.param, scale)
        else:
            kernels_for(weight.device).perturb_each(
                out,
                weight,
                seed=directions.seed,
                step=probe.direction.step,
                param=ref.param,
                ks=probe.rows.which_tensor + probe.ks[0],
                scales=probe.rows.scales_tensor,
            )
        return out
