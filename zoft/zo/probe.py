"""A probe is a view: the model computes with W + scale * z while W itself is never written.

Inside `with view.probe(direction, scale):` every module that reads a tuned parameter works on a copy
made as it is entered and dropped as it is left. Nothing is restored by arithmetic, so nothing drifts,
and memory grows by the largest module's weight. `view.plain()` is the same without a direction: it
only casts weights that are stored in another dtype than the one that is computed in.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from zoft.errors import RecipeError
from zoft.zo.directions import Direction
from zoft.zo.readers import find_readers
from zoft.zo.scratch import Scratch


@dataclass(frozen=True, slots=True)
class Slot:
    """Where a reader finds a parameter: attribute `name` of `owner`. `param` is None if frozen."""

    owner: nn.Module
    name: str
    parameter: nn.Parameter
    param: int | None


@dataclass(frozen=True, slots=True)
class Leaf:
    """A module that reads parameters, with the slots it reads."""

    module: nn.Module
    slots: tuple[Slot, ...]

    def own(self, name: str) -> Slot | None:
        return next((s for s in self.slots if s.owner is self.module and s.name == name), None)


@dataclass(frozen=True, slots=True)
class Lean:
    """What the head computes: hidden states of flat positions (N,), logits of `vocab` (n,) or all."""

    positions: Tensor
    vocab: Tensor | None = None


class View:
    """A causal language model whose forward passes can be taken at theta or at theta + scale * z.

    `tuned` maps a parameter's name to it, `ids` to its id in the directions' address. `example` is a
    small (1, T) int64 tensor of token ids; one forward pass on it shows who reads what. Raises
    RecipeError if a tuned parameter is never read.
    """

    def __init__(
        self,
        model: nn.Module,
        tuned: Mapping[str, nn.Parameter],
        ids: Mapping[str, int],
        compute_dtype: torch.dtype,
        example: Tensor,
    ) -> None:
        self.model = model
        self.compute_dtype = compute_dtype
        self.head: nn.Module = model.get_output_embeddings()  # type: ignore[operator]
        # The type in which each parameter last met its inputs while a probe was open.
        self.delivered: dict[nn.Parameter, torch.dtype] = {}
        self._scratch = Scratch(example.device)
        self._direction: Direction | None = None
        self._scale = 0.0
        self._lean: Lean | None = None
        self._active = False
        self.leaves = self._find_leaves(tuned, ids, example)
        self._head_leaf = next((x for x in self.leaves if x.module is self.head), None)

    # -- using it ---------------------------------------------------------------------------------

    @contextmanager
    def probe(self, direction: Direction | None, scale: float) -> Iterator[None]:
        """Inside, the model computes at theta + scale * z. Left in any way, every module is as before.

        Not re-entrant: one probe at a time.
        """
        if self._active:
            raise RuntimeError("probes do not nest")
        self._active, self._direction, self._scale = True, direction, scale
        before = {
            m: m.__dict__.get("forward") for m in [*(x.module for x in self.leaves), self.head]
        }
        try:
            for leaf in self.leaves:
                if leaf.module is not self.head:
                    leaf.module.forward = self._road(leaf)
            self.head.forward = self._lean_head(self.head.forward)
            yield
        finally:
            # Here and not in hooks: hooks don't run when Ctrl-C arrives inside a forward.
            for module, forward in before.items():
                if forward is None:
                    module.__dict__.pop("forward", None)
                else:
                    module.forward = forward
            for leaf in self.leaves:
                _put_back(leaf)
            self._scratch.release(0)
            self._active, self._direction, self._lean = False, None, None

    def plain(self) -> Any:
        """The model at theta itself, with the same lean head."""
        return self.probe(None, 0.0)

    @torch.no_grad()
    def logits(
        self,
        input_ids: Tensor,
        positions: Tensor,
        vocab: Tensor | None = None,
        attention_mask: Tensor | None = None,
    ) -> Tensor:
        """Logits (N, n) at the flat `positions` (N,) of input_ids (R, T), for the tokens `vocab`.

        Only these positions go through the head, and only these rows of it are multiplied. Must run
        inside `probe` or `plain`.
        """
        if not self._active:
            raise RuntimeError("logits() outside a probe")
        self._lean = Lean(positions, vocab)
        output = self.model(input_ids=input_ids, attention_mask=attention_mask, use_cache=False)
        logits: Tensor = output.logits
        return logits

    # -- building it ------------------------------------------------------------------------------

    def _find_leaves(
        self, tuned: Mapping[str, nn.Parameter], ids: Mapping[str, int], example: Tensor
    ) -> list[Leaf]:
        number = {parameter: ids[name] for name, parameter in tuned.items()}
        # A frozen weight stored in another dtype needs the cast, too.
        needed = [
            p
            for p in self.model.parameters()
            if p in number or (p.is_floating_point() and p.dtype != self.compute_dtype)
        ]
        readers = find_readers(needed, lambda: self.model(input_ids=example, use_cache=False))
        lost = [name for name, parameter in tuned.items() if parameter not in readers]
        if lost:
            raise RecipeError(
                f"no forward pass reads {', '.join(lost[:3])}{' …' if len(lost) > 3 else ''} "
                f"({len(lost)} tuned parameters): name them in tune.exclude"
            )
        owners: dict[nn.Parameter, Slot] = {}
        for module in self.model.modules():
            for name, parameter in module.named_parameters(recurse=False):
                owners.setdefault(parameter, Slot(module, name, parameter, number.get(parameter)))
        slots: dict[nn.Module, list[Slot]] = {}
        for parameter in needed:
            for reader in readers.get(parameter, []):
                own = next(
                    (n for n, p in reader.named_parameters(recurse=False) if p is parameter), None
                )
                slot = Slot(reader, own, parameter, number.get(parameter)) if own else None
                slots.setdefault(reader, []).append(slot or owners[parameter])
        return [Leaf(module, tuple(found)) for module, found in slots.items()]

    # -- the roads through a leaf -----------------------------------------------------------------

    def _road(self, leaf: Leaf) -> Callable[..., Any]:
        """The forward that stands in for the leaf's own while the probe lasts."""
        module, weight = leaf.module, leaf.own("weight")
        kind = getattr(type(module), "forward", None)
        only_own = all(slot.owner is module for slot in leaf.slots)
        if (
            weight is not None
            and only_own
            and kind is nn.Embedding.forward
            and isinstance(module, nn.Embedding)
            and module.max_norm is None
        ):
            return lambda ids: self._embedding(weight, ids)
        if only_own and kind in (nn.Linear.forward, Conv1D.forward):
            return lambda x: self._linear(leaf, x, transposed=kind is Conv1D.forward)
        return self._swapped(leaf, module.forward)

    def _embedding(self, weight: Slot, ids: Tensor) -> Tensor:
        """Looked-up rows only: a row costs some hundred elements' work, the table millions."""
        columns = weight.parameter.shape[1]
        return self._rows(weight, ids.reshape(-1), self.compute_dtype).view(*ids.shape, columns)

    def _linear(self, leaf: Leaf, x: Tensor, *, transposed: bool) -> Tensor:
        weight, bias = leaf.own("weight"), leaf.own("bias")
        mark = self._scratch.mark()
        try:
            matrix = self._value(weight, x.dtype) if weight else leaf.module.weight
            assert isinstance(matrix, Tensor)
            if transposed:
                matrix = matrix.t()
            frozen = getattr(leaf.module, "bias", None)
            vector = self._value(bias, torch.float32) if bias else frozen
            if vector is None or vector.dtype == x.dtype:
                return nn.functional.linear(x, matrix, vector)
            # A low-precision bias would lose most of its perturbation: add it in float32.
            y = nn.functional.linear(x, matrix)
            return (y + vector).to(y.dtype)
        finally:
            self._scratch.release(mark)

    def _swapped(self, leaf: Leaf, forward: Callable[..., Any]) -> Callable[..., Any]:
        """Any other module: its parameters are exchanged for copies while its own forward runs.

        One that has vectors only (a norm, a scale) computes in float32: in bfloat16, 1 +- 1e-3
        rounds back to 1.
        """
        vectors = all(slot.parameter.ndim < 2 for slot in leaf.slots)

        def run(*args: Any, **kwargs: Any) -> Any:
            inputs = [x for x in (*args, *kwargs.values()) if _floating(x)]
            # An embedding starts the stream, whatever masks it is handed (OPT's positions: float32).
            starts = not inputs or isinstance(leaf.module, nn.Embedding)
            outer = self.compute_dtype if starts else inputs[0].dtype
            inner = torch.float32 if vectors else outer
            if inner != outer:
                args = tuple(_cast(x, outer, inner) for x in args)
                kwargs = {key: _cast(x, outer, inner) for key, x in kwargs.items()}
            mark = self._scratch.mark()
            try:
                for slot in leaf.slots:
                    slot.owner._parameters[slot.name] = self._value(slot, inner)  # type: ignore[assignment]
                output = forward(*args, **kwargs)
            finally:
                _put_back(leaf)
                self._scratch.release(mark)
            if inner == outer:
                return output
            if isinstance(output, tuple):
                return tuple(_cast(x, inner, outer) for x in output)
            return _cast(output, inner, outer)

        return run

    def _lean_head(self, forward: Callable[..., Any]) -> Callable[..., Any]:
        """Gather the scored positions first; take the rows of `vocab` only where the head allows."""
        leaf, head = self._head_leaf, self.head
        is_linear = getattr(type(head), "forward", None) is nn.Linear.forward
        inner = self._road(leaf) if leaf else forward

        def run(hidden: Tensor) -> Tensor:
            lean = self._lean
            if lean is None:
                raise RuntimeError("the head ran outside logits()")
            hidden = hidden.reshape(-1, hidden.shape[-1])[lean.positions]
            if lean.vocab is None:
                return inner(hidden)  # type: ignore[no-any-return]
            if not is_linear or (leaf and leaf.own("weight") is None):
                return inner(hidden)[:, lean.vocab]  # type: ignore[no-any-return]
            # Few rows: float32 throughout, where the difference of two logits is the loss.
            weight, bias = (leaf.own("weight"), leaf.own("bias")) if leaf else (None, None)
            assert isinstance(head.weight, Tensor)
            if weight:
                rows = self._rows(weight, lean.vocab, torch.float32)
            else:
                rows = head.weight[lean.vocab].float()
            mark = self._scratch.mark()
            whole = self._value(bias, torch.float32) if bias else head.bias
            vector = whole[lean.vocab].float() if isinstance(whole, Tensor) else None
            self._scratch.release(mark)
            return nn.functional.linear(hidden.float(), rows, vector)

        return run

    # -- perturbed values -------------------------------------------------------------------------

    def _value(self, slot: Slot, dtype: torch.dtype) -> Tensor:
        """The parameter as this pass sees it: itself, a cast, or W + scale * z in scratch."""
        weight = slot.parameter.detach()
        direction = self._direction
        if (direction is None or slot.param is None) and weight.dtype == dtype:
            return weight
        self.delivered[slot.parameter] = dtype
        out = self._scratch.take(weight.shape, dtype)
        if direction is None or slot.param is None:
            return out.copy_(weight)
        direction.perturb(out, weight, slot.param, self._scale)
        return out

    def _rows(self, slot: Slot, rows: Tensor, dtype: torch.dtype) -> Tensor:
        """Rows (n,) of a matrix as this pass sees them: (n, C)."""
        weight = slot.parameter.detach()
        if self._direction is None or slot.param is None:
            return weight[rows].to(dtype)
        out = torch.empty((rows.numel(), weight.shape[1]), dtype=dtype, device=weight.device)
        self._direction.perturb_rows(out, weight, rows.contiguous(), slot.param, self._scale)
        return out


def _put_back(leaf: Leaf) -> None:
    for slot in leaf.slots:
        slot.owner._parameters[slot.name] = slot.parameter


def _floating(x: object) -> bool:
    return isinstance(x, Tensor) and x.is_floating_point()


def _cast(x: Any, source: torch.dtype, target: torch.dtype) -> Any:
    return x.to(target) if isinstance(x, Tensor) and x.dtype == source else x
