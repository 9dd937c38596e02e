"""A tail that moves with every step: its gradient, its update rule, and its state."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path

from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from zoft.engine.objectives.batch import Batch
from zoft.engine.objectives.objective import Objective
from zoft.engine.tail.blocks import LastBlocks
from zoft.engine.tail.head import FILE
from zoft.engine.tail.update import FactoredRMS
from zoft.errors import EnvironmentProblem

STATE = "tail_state.safetensors"  # in a checkpoint, beside the weights
END = "end"  # a run's folder of what no journal holds, beside it


@dataclass(frozen=True)
class MovingTail:
    """The last blocks, moved by their rule at `lr`."""

    blocks: LastBlocks
    rule: FactoredRMS
    lr: float

    def recording(self) -> AbstractContextManager[None]:
        """Inside, the passes are those whose gradient `step` takes."""
        return self.blocks.recording()

    def step(self, step: int, objective: Objective, batches: Sequence[Batch], share: float) -> None:
        """Take 1-based `step` on the recorded passes of `batches`, at `share` of the rate."""

        def update(name: str, parameter: Tensor, gradient: Tensor) -> None:
            self.rule.move(name, parameter, gradient, step, self.lr * share)

        self.blocks.step(objective, batches, update)

    def state_dict(self) -> dict[str, Tensor]:
        return dict(self.rule.state)

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        self.rule.state = dict(state)

    def write(self, folder: Path, step: int) -> None:
        """Write the weights as they are after `step`."""
        tensors = {name: p.detach().contiguous() for name, p in self.blocks.parameters.items()}
        save_file(tensors, folder / FILE, {"step": str(step)})


def put_weights(folder: Path, model: nn.Module, step: int) -> None:
    """Write the tail's weights into the model. Raises EnvironmentProblem unless they are those after
    `step`."""
    file = folder / FILE
    if not file.is_file():
        raise EnvironmentProblem(f"the last blocks moved by exact gradients: {file} must hold them")
    with safe_open(file, "pt") as stored:
        found = int(stored.metadata()["step"])
        if found != step:
            raise EnvironmentProblem(f"{file} holds the last blocks of step {found} alone")
        parameters = dict(model.named_parameters())
        for name in stored.keys():  # noqa: SIM118 (no mapping)
            parameters[name].data.copy_(stored.get_tensor(name))
