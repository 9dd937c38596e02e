"""Where the weights wait for their turn: the fastest place that the memory budgets allow."""

from __future__ import annotations

from bisect import bisect_right
from dataclasses import dataclass

from zoft.errors import EnvironmentProblem, OutOfMemory
from zoft.models.load import cannot_stream
from zoft.planning.memory.footprint import CUDA_CONTEXT, Footprint, Residency, footprint
from zoft.planning.workload import Shape
from zoft.recipe.resolved import Resolved
from zoft.system import accelerator
from zoft.system.host_memory import free_host_bytes, gib

# Left free of what a budget of `auto` finds: for allocators' gaps, and for the rest of the machine.
MARGIN = 0.05


@dataclass(frozen=True, slots=True)
class Choice:
    """A footprint that fits, and in one sentence why it was chosen. `spare` bytes of the device's budget
    are free between its passes; None if that is not known."""

    footprint: Footprint
    why: str
    spare: int | None = None

    @property
    def residency(self) -> Residency:
        return self.footprint.residency

    @property
    def resident_blocks(self) -> tuple[int, ...]:
        """Numbers of the blocks that stay on the device, ascending."""
        return self.footprint.resident

    def streams(self, block: int) -> bool:
        """Whether the block with this number is fetched for each pass."""
        return block not in self.resident_blocks

    @property
    def slots(self) -> int:
        return self.footprint.slots


def choose(
    recipe: Resolved,
    shape: Shape,
    device_bytes: int,
    host_bytes: int,
) -> Choice:
    """The fastest residency that fits both budgets; of the streamed ones that with most blocks resident,
    one buffer for all of them where two or three do not fit.

    The device if all fits there, else the host's memory (no place of its own on a CPU), else the disk.
    With a `model.residency` that is no `auto` all blocks are there. Raises OutOfMemory that says what
    is needed and what is there, EnvironmentProblem for a model that cannot be streamed but has to.
    """
    wanted = recipe.model.residency
    if shape.fixed and wanted not in ("auto", "device"):
        raise EnvironmentProblem(cannot_stream(recipe.model.name, shape.fixed))
    cpu = recipe.device == "cpu"

    def at(residency: Residency, number: int, slots: int | None = None) -> Footprint:
        resident = spread(number, shape.blocks)
        return footprint(recipe, shape, residency, resident, slots)

    def fitting(found: Footprint) -> Footprint | None:
        for one in (found, found.unchecked):
            if one.device <= device_bytes and one.host <= host_bytes:
                return one
        return None

    refused = ""
    places: list[Residency] = ["device", "disk"] if cpu else ["device", "host", "disk"]
    if shape.fixed:
        places = ["device"]
    for residency in places if wanted == "auto" else [wanted]:
        if residency == "device" or not shape.blocks:
            found = at("device", shape.blocks)
            if chosen := fitting(found):
                why = f"all of it fits on the device ({_sizes(chosen, cpu)})"
                return Choice(chosen, why, device_bytes - chosen.held)
            found = found.unchecked
            refused = f"on the device it needs {_sizes(found, cpu)}"
            continue
        most = 1
        if wanted == "auto":  # more blocks take more of the device and leave less to the host
            most = bisect_right(
                range(shape.blocks), device_bytes, key=lambda n: at(residency, n).device
            )
        found = at(residency, max(0, most - 1))
        chosen = fitting(found)
        if not chosen:  # then nothing is fetched ahead
            found = at(residency, 0, slots=1).unchecked
            chosen = fitting(found)
        if chosen:
            reason = f"{refused}; " if refused else ""
            why = f"{reason}streamed from the {residency}, {_who_stays(chosen, shape)}"
            return Choice(chosen, why, device_bytes - chosen.held)
        refused = f"even streamed from the {residency} it needs {_sizes(found, cpu)}"
    there = gib(device_bytes)
    if not cpu:
        there = f"{gib(device_bytes)} of the device and {gib(host_bytes)} of the host"
    fixed = f"; it cannot be streamed, {shape.fixed}" if shape.fixed else ""
    raise OutOfMemory(f"{refused}; {there} may be used{fixed}")


def _who_stays(found: Footprint, shape: Shape) -> str:
    stay = f"{len(found.resident)} of {shape.blocks} blocks stay on the device"
    return f"{stay}, one at a time is fetched" if found.slots == 1 < shape.blocks else stay


def placed(recipe: Resolved, choice: Choice) -> Resolved:
    """The recipe with the choice written down: model.residency."""
    model = recipe.model.model_copy(update={"residency": choice.residency})
    return recipe.model_copy(update={"model": model})


def spread(number: int, blocks: int) -> tuple[int, ...]:
    """So many of the blocks, evenly, so that a fetch hides behind resident ones' compute."""
    return tuple(i for i in range(blocks) if (i + 1) * number // blocks > i * number // blocks)


def _sizes(found: Footprint, cpu: bool) -> str:
    return gib(found.device) if cpu else f"{gib(found.device)} there, {gib(found.host)} on the host"


# -- budgets ----------------------------------------------------------------------------------------


def budgets(recipe: Resolved) -> tuple[int, int]:
    """Bytes that the run may take of the device and of the host, itself included.

    What the recipe says, or what is free less a margin. On a CPU the first is the host's memory and the
    second is nothing of its own.
    """
    free, memory = free_host_bytes(), recipe.memory
    if recipe.device == "cpu":
        return _least(memory.device_budget, memory.host_budget, auto=int(free * (1 - MARGIN))), 0
    card, _ = accelerator.memory_bytes(recipe.device)
    # Its answer is without the context that asking it has made.
    own = CUDA_CONTEXT + accelerator.reserved_bytes(recipe.device)
    return (
        _least(memory.device_budget, auto=int(card * (1 - MARGIN)) + own),
        _least(memory.host_budget, auto=int(free * (1 - MARGIN))),
    )


def _least(*given: object, auto: int) -> int:
    sizes = [size for size in given if isinstance(size, int)]
    return min(sizes, default=auto)
