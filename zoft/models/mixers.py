"""Linear modules of a decoder by what they do in a pass over an outline, whatever their names."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from copy import deepcopy
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from zoft.errors import EnvironmentProblem
from zoft.models.activations import Scalars
from zoft.models.blocks import find_blocks
from zoft.system.silence import quiet

TOKENS = 4  # as many as the look at the model's modules reads before the first step


@dataclass(frozen=True)
class Linears:
    """Full names of linear modules. `called` run as such on a row of text; None if no pass over the
    outline was possible. `mixing` are those of the modules that mix positions (attention, or a
    state-space layer), without the last, which writes the result into the stream; `closing` are the
    last of the feed-forward networks."""

    called: frozenset[str] | None
    mixing: frozenset[str]
    closing: frozenset[str]


def linear_modules(model: nn.Module) -> dict[str, nn.Module]:
    """The matrices that an adapter can change, by name."""
    return {n: m for n, m in model.named_modules() if isinstance(m, nn.Linear | Conv1D)}


def observe_linears(model: PreTrainedModel) -> Linears:
    """Run a row through the model's outline (built anew from its config if it has weights)."""
    outline: PreTrainedModel = model
    if any(not p.is_meta for p in model.parameters()):
        build: Any = type(model)
        with quiet(), torch.device("meta"):
            outline = build(deepcopy(model.config)).eval()
    parts: dict[str, dict[str, nn.Module]] = {}  # of each block
    with suppress(EnvironmentProblem):  # no blocks, so none of their places
        blocks = find_blocks(outline)
        names = [f"{blocks.name}.{i}" for i in range(len(blocks.modules))]
        parts = {n: dict(_parts(n, m)) for n, m in zip(names, blocks.modules, strict=True)}
    seen = _Pass({name: part for block in parts.values() for name, part in block.items()})
    with seen.over(outline):
        ids = torch.zeros(1, TOKENS, dtype=torch.int64, device="meta")
        try:
            outline(input_ids=ids, use_cache=False)
            whole = True
        except Exception:  # a model that looks at its numbers may raise anything on the meta device
            whole = False
    mixers = {block: _mixers(seen, block, list(found)) for block, found in parts.items()}
    if not any(mixers.values()):  # nothing but the stream goes into any part: the first one mixes
        mixers = {block: list(found)[:1] for block, found in parts.items()}
    mixing = [name for found in mixers.values() for mixer in found for name in _mixing(seen, mixer)]
    closing = [name for block in parts for name in _closing(seen, mixers[block], parts[block])]
    return Linears(
        frozenset(call.name for call in seen.calls if call.linear) if whole else None,
        _in_all_blocks(outline, parts, mixing),
        _in_all_blocks(outline, parts, closing),
    )


@dataclass(frozen=True)
class _Call:
    """A linear module's run. `source` is its input's storage; `linear` says that the output is of
    the shape which an adapter's product has."""

    name: str
    source: int
    inputs: int
    outputs: int
    linear: bool


@dataclass
class _Pass:
    """What is seen of one pass. `parts` are the children of the blocks that hold linear modules."""

    parts: dict[str, nn.Module]
    calls: list[_Call] = field(default_factory=list)
    given: dict[str, int] = field(default_factory=dict)  # arguments of each part that was entered
    choosing: set[str] = field(default_factory=set)  # modules that return whole numbers only
    finished: set[str] = field(default_factory=set)
    kept: list[Tensor] = field(default_factory=list)  # so that no storage is used twice

    def inside(self, part: str) -> list[_Call]:
        """The runs of linear modules in a part."""
        return [call for call in self.calls if f"{call.name}.".startswith(f"{part}.")]

    @contextmanager
    def over(self, model: nn.Module) -> Iterator[None]:
        """Watch whatever of the model runs inside the context."""
        names = {module: name for name, module in model.named_modules()}
        linear = set(linear_modules(model).values())

        def enter(module: nn.Module, args: Any, kwargs: Any) -> None:
            self.given.setdefault(names[module], len(args) + len(kwargs))

        def leave(module: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
            name = names[module]
            self.finished.add(name)
            tensors = [x for x in tree_leaves(output) if isinstance(x, Tensor)]
            if tensors and not any(x.is_floating_point() for x in tensors):
                self.choosing.add(name)
            if module in linear:
                x: Tensor = [*args, *kwargs.values()][0]
                self.kept.append(x)
                self.calls.append(_call(name, module, x, output))

        handles = [
            hook
            for module in model.modules()
            for hook in (
                module.register_forward_pre_hook(enter, with_kwargs=True),
                module.register_forward_hook(leave, with_kwargs=True),
            )
        ]
        try:
            with torch.no_grad(), MetaAnswers():
                yield
        finally:
            for handle in handles:
                handle.remove()


def _call(name: str, module: nn.Module, x: Tensor, output: Any) -> _Call:
    outputs, inputs = module.weight.shape  # type: ignore[misc]
    if isinstance(module, Conv1D):
        inputs, outputs = outputs, inputs
    linear = isinstance(output, Tensor) and output.shape == (*x.shape[:-1], outputs)
    return _Call(name, x.untyped_storage()._cdata, inputs, outputs, linear)


def _parts(name: str, module: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """Yield the children that hold linear modules; of a list, its own."""
    for own, child in module.named_children():
        path = f"{name}.{own}"
        if isinstance(child, nn.ModuleList):
            yield from _parts(path, child)
        elif linear_modules(child):
            yield path, child


def _mixers(seen: _Pass, block: str, parts: list[str]) -> list[str]:
    """Return the part that mixes positions, with its neighbours if it is in a list: the first that is
    given more than the stream (positions, a mask, a state). A feed-forward network or a norm is not."""
    first = next((part for part in parts if seen.given.get(part, 0) > 1), None)
    if first is None:
        return []
    parent = first.rpartition(".")[0]
    return [first] if parent == block else [x for x in parts if x.rpartition(".")[0] == parent]


def _mixing(seen: _Pass, mixer: str) -> list[str]:
    """Return the linear modules of a mixer that come before the one which closes it."""
    if mixer not in seen.finished:
        return [f"{mixer}.{name}".rstrip(".") for name in linear_modules(seen.parts[mixer])]
    calls = [
        call
        for call in seen.inside(mixer)
        if call.linear and not any(call.name.startswith(f"{name}.") for name in seen.choosing)
    ]
    last = _last(calls)
    return [call.name for call in calls if call.name != last]


def _closing(seen: _Pass, mixers: list[str], parts: Iterable[str]) -> list[str]:
    """Return the last linear module of a block's feed-forward network, if it has one."""
    mixing = [call for mixer in mixers for call in seen.inside(mixer)]
    calls = [call for part in parts if part not in mixers for call in seen.inside(part)]
    last = max(calls, key=seen.calls.index, default=None)
    return [last.name] if last and mixing and last.outputs == mixing[0].inputs else []


def _in_all_blocks(
    outline: nn.Module, blocks: Iterable[str], names: Iterable[str]
) -> frozenset[str]:
    """Return what is in the same places of any block: a pass that breaks off has not seen them all."""
    places = {name.removeprefix(f"{block}.") for block in blocks for name in names}
    return frozenset(linear_modules(outline).keys() & {f"{b}.{p}" for b in blocks for p in places})


def _last(calls: list[_Call]) -> str | None:
    """Return the last one's name if it leads back to the width that the first one reads."""
    if calls and calls[-1].outputs == calls[0].inputs and calls[-1].source != calls[0].source:
        return calls[-1].name
    return None


class MetaAnswers(Scalars):  # type: ignore[no-untyped-call]
    """Answers also for the experts of a mixture: each gets a token, and products by group have a
    shape in every type."""

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        if func is torch.ops.aten.nonzero.default:
            return args[0].new_empty((1, args[0].ndim), dtype=torch.int64)
        if func is torch.ops.aten._grouped_mm.default:
            return args[0].new_empty((*args[0].shape[:-1], args[1].shape[-1]))
        return super().__torch_dispatch__(func, types, args, kwargs)
