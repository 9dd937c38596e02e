"""A model at theta + scale * z: it computes with W + scale * z while W itself is never written.

Inside `with model.probe(direction, scale):` every module that reads a tuned parameter works on a copy
made as it is entered and dropped as it is left, or, with rank-1 directions, on a correction inside its
product. Nothing is restored by arithmetic, so nothing drifts, and memory grows by the largest module's
weight. `model.plain()` is the same without a direction: it only casts weights that are stored in another
dtype than the one that is computed in.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence, Set
from contextlib import contextmanager
from copy import copy
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from zoft.engine.probe.attention import bounded_attention, one_text_a_row
from zoft.engine.probe.directions import Direction
from zoft.engine.probe.forwards.choose import PerturbedForwards
from zoft.engine.probe.head import HeadForward, HeadRequest
from zoft.engine.probe.leaves import Leaf, find_leaves
from zoft.engine.probe.perturbed import PerturbedParameters
from zoft.engine.probe.rows import assign_rows
from zoft.models.meta import computed_buffers


class ProbedModel:
    """A causal language model whose forward passes can be taken at theta or at theta + scale * z.

    `tuned` maps a parameter's name to it, `ids` to its id in the directions' address. `example` is a
    small (1, T) int64 tensor of token ids; one forward pass on it shows which module reads what.
    `masked` says whether the model needs an attention mask over padding; it is set once that is known.
    `head_ends_the_model`: what the head gives is what the model returns.
    Raises RecipeError if a tuned parameter is never read.
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
        self.masked = False
        self._read(find_leaves(model, tuned, ids, compute_dtype, example), example.device)
        self._buffers = [
            (module, name, module._buffers[name].to(compute_dtype))  # type: ignore[union-attr]
            for module, name in computed_buffers(model, compute_dtype)
        ]
        self._scales: tuple[float, ...] = ()
        self._examples: int | None = None
        self._with_graph = False
        self.head_ends_the_model = self._check_head_ends_the_model(example)

    def _read(self, leaves: list[Leaf], device: torch.device) -> None:
        """Show the parameters that these modules read."""
        self.leaves = leaves
        self.parameters = PerturbedParameters(leaves, self.compute_dtype, device)
        self._forwards = PerturbedForwards(leaves, self.parameters)
        module: nn.Module = self.model.get_output_embeddings()  # type: ignore[operator]
        leaf = next((x for x in leaves if x.module is module), None)
        self._head = HeadForward(module, leaf, self.parameters, self._forwards)

    def only(self, parameters: Set[nn.Parameter]) -> ProbedModel:
        """The same model, whose probes move only these of the tuned parameters."""
        part = copy(self)
        device = self.parameters.rows.which_tensor.device
        part._read([leaf.moving(parameters) for leaf in self.leaves], device)
        return part

    @property
    def probed(self) -> bool:
        """Whether there is a weight that probes move."""
        return any(ref.param is not None for leaf in self.leaves for ref in leaf.refs)

    @property
    def delivered(self) -> dict[nn.Parameter, torch.dtype]:
        """The type in which each dense parameter last met its inputs while a probe was open."""
        return self.parameters.dense.delivered

    # -- using it ---------------------------------------------------------------------------------

    @contextmanager
    def probe(
        self, direction: Direction | None, *scales: float, examples: int | None = None
    ) -> Iterator[None]:
        """Inside, the model computes at theta + scale * z. Left in any way, every module is as before.

        With several scales a pass runs that many copies of its rows, each at its own scale (a paired
        probe: +epsilon, -epsilon). With `examples` B, each of B examples has a direction of its own:
        number k * B + i of the step for example i. Not re-entrant: one probe at a time.
        """
        if self._scales:
            raise RuntimeError("probes do not nest")
        self._scales, self._examples = scales, examples
        head = self._head.module
        before = {m: m.__dict__.get("forward") for m in [*(x.module for x in self.leaves), head]}
        buffers = [(module, name, module._buffers[name]) for module, name, _ in self._buffers]
        try:
            for module, name, computed in self._buffers:
                module._buffers[name] = computed
            self.parameters.open(direction, examples)
            for leaf in self.leaves:
                if leaf.module is not head:
                    leaf.module.forward = self._forwards.of(leaf)
            self._head.open()
            head.forward = self._head
            yield
        finally:
            # Here and not in hooks: hooks don't run when Ctrl-C arrives inside a forward.
            for module, forward in before.items():
                if forward is None:
                    module.__dict__.pop("forward", None)
                else:
                    module.forward = forward
            for module, name, buffer in buffers:
                module._buffers[name] = buffer
            self.parameters.close()
            self._head.request = None
            self._scales, self._examples = (), None

    @contextmanager
    def computing_in(self, dtype: torch.dtype) -> Iterator[None]:
        """Inside, probes compute in `dtype`, which no weight is stored below, instead."""
        before = self.compute_dtype, self._buffers
        self.compute_dtype = self.parameters.compute_dtype = dtype
        self._buffers = self._buffers if dtype == before[0] else []
        try:
            yield
        finally:
            self.compute_dtype, self._buffers = before
            self.parameters.compute_dtype = before[0]

    @contextmanager
    def with_graph(self) -> Iterator[None]:
        """Inside, passes record what a backward pass needs, where something requires it."""
        self._with_graph = True
        try:
            yield
        finally:
            self._with_graph = False

    def plain(self) -> Any:
        """The model at theta itself, with the same requests to its head."""
        return self.probe(None, 0.0)

    @contextmanager
    def decoding(self, rows: int, length: int) -> Iterator[None]:
        """The model at theta for a library's decoding: inside, `model` itself may be called, with a
        cache, on `rows` rows that grow to `length` tokens. It gives the logits of the last column."""
        config: Any = self.model.config
        everyone = assign_rows(rows, (0,), (0.0,), self.parameters.rows.which_tensor.device)
        with (
            self.plain(),
            self.parameters.narrowed(everyone),
            bounded_attention(config, rows, length),
        ):
            self._head.request = HeadRequest(None, 1)
            yield

    def logits(
        self,
        input_ids: Tensor,
        positions: Tensor,
        vocab: Tensor | None = None,
        attention_mask: Tensor | None = None,
        examples: Sequence[int] | None = None,
    ) -> Tensor:
        """Logits (copies * N, n) at the flat `positions` (N,) of input_ids (R, T), for tokens `vocab`.

        The positions are on the host, the rest on the model's device. Only these positions go through
        the head, and only these rows of it are multiplied.
        `examples` says of each row which example it belongs to (default: the rows in order; rows of
        one example stand together, equally many for each). Must run inside `probe` or `plain`.
        """
        request = HeadRequest(self._copied(positions, input_ids.numel()), input_ids.shape[1], vocab)
        return self._run(request, input_ids, attention_mask, examples)

    def token_losses(
        self,
        input_ids: Tensor,
        positions: Tensor,
        targets: Tensor,
        attention_mask: Tensor | None = None,
        examples: Sequence[int] | None = None,
    ) -> Tensor:
        """-log p of each of `targets` (N,) in float32: (copies * N,), see `logits`."""
        request = HeadRequest(self._copied(positions, input_ids.numel()), input_ids.shape[1])
        wanted = targets.repeat(len(self._scales))
        if self.head_ends_the_model:
            request = replace(request, targets=wanted)
            return self._run(request, input_ids, attention_mask, examples)[:, 0]
        logits = self._run(request, input_ids, attention_mask, examples)
        # In float16 a loss near 4 has an ulp of 4e-3.
        return nn.functional.cross_entropy(logits.float(), wanted, reduction="none")

    def hidden(
        self, input_ids: Tensor, positions: Tensor, attention_mask: Tensor | None = None
    ) -> Tensor:
        """What the head reads at the flat `positions` (N,), (copies * N, d) float32, where the head
        ends the model."""
        assert self.head_ends_the_model
        request = HeadRequest(
            self._copied(positions, input_ids.numel()), input_ids.shape[1], hidden=True
        )
        return self._run(request, input_ids, attention_mask, None)

    # -- a pass -----------------------------------------------------------------------------------

    def _copied(self, positions: Tensor, size: int) -> Tensor:
        """The flat positions in all copies."""
        if not self._scales:
            raise RuntimeError("logits() outside a probe")
        return torch.cat([positions + size * copy for copy in range(len(self._scales))])

    def _run(
        self,
        request: HeadRequest,
        input_ids: Tensor,
        attention_mask: Tensor | None,
        examples: Sequence[int] | None,
    ) -> Tensor:
        copies = len(self._scales)
        self._head.request = request
        input_ids = input_ids.repeat(copies, 1)
        if attention_mask is not None:
            attention_mask = attention_mask.repeat(copies, 1)
        which, scales = self._runs(input_ids.shape[0] // copies, examples)
        rows = assign_rows(input_ids.shape[0], which, scales, input_ids.device)
        config: Any = self.model.config
        with (
            torch.set_grad_enabled(self._with_graph),
            self.parameters.narrowed(rows),
            bounded_attention(config, *input_ids.shape),
            one_text_a_row(),
        ):
            output = self.model(input_ids=input_ids, attention_mask=attention_mask, use_cache=False)
        logits: Tensor = output.logits
        return logits

    def _runs(self, rows: int, examples: Sequence[int] | None) -> tuple[list[int], list[float]]:
        """Direction and scale of every run of rows, copy after copy."""
        if self._examples is None:
            return [0] * len(self._scales), list(self._scales)
        numbers = list(dict.fromkeys(examples or range(rows)))
        assert rows % len(numbers) == 0, "examples of unequally many rows"
        return (
            numbers * len(self._scales),
            [scale for scale in self._scales for _ in numbers],
        )

    def _check_head_ends_the_model(self, example: Tensor) -> bool:
        """Whether the model returns what its head computed: no softcap, no scale, no bias after it."""
        if not self._head.is_linear:
            return False
        seen: list[Tensor] = []

        def keep(_module: nn.Module, _inputs: Any, output: Tensor) -> None:
            seen.append(output)

        handle = self._head.module.register_forward_hook(keep)
        try:
            with self.plain():
                logits = self.logits(example, torch.arange(example.numel()))
        finally:
            handle.remove()
        return len(seen) == 1 and torch.equal(seen[0], logits)
