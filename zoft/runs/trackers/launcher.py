"""wandb, TensorBoard, trackio: each in a process of its own, which reads metrics.jsonl as it grows.

The run sends nothing and waits for nothing: the file is the queue. A tracker that fails, hangs or is
killed costs one line on the screen. At the end of the run the pipe that each holds is closed; each then
has some seconds to send the rest.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from uuid import uuid4

from zoft.errors import EnvironmentProblem
from zoft.runs.folder import RunFolder
from zoft.runs.trackers.state import place, read_state
from zoft.system.signals import Stop

LOADING, SILENT = 30.0, 10.0  # seconds without a sign of life at a run's end
STOPPED = 2.0  # seconds in all, where the user wants it to end now
LAGGING = 60.0  # seconds without a sign of life while the run goes on
EXTRAS = {"wandb": "zoft", "tensorboard": "zoft[tensorboard]", "trackio": "zoft[trackio]"}
OWN = {"wandb": ("WANDB_",), "tensorboard": (), "trackio": ("TRACKIO_", "HF_TOKEN")}
SECRET = ("TOKEN", "KEY", "SECRET", "PASSW", "CREDENTIAL")
# What a launcher tells a rank, and accelerate would take for its own.
LAUNCHERS = ("RANK", "LOCAL_", "GROUP_", "WORLD_", "MASTER_", "TORCHELASTIC_", "ACCELERATE_")


def require_installed(names: Sequence[str]) -> None:
    """Raises EnvironmentProblem for a tracker that is not installed."""
    for name in names:
        if find_spec(name) is None:
            raise EnvironmentProblem(
                f"logging.trackers names {name}, which is not installed: "
                f'pip install "{EXTRAS[name]}"'
            )


@contextmanager
def tracked(
    folder: RunFolder, names: Sequence[str], say: Callable[[str], None], stop: Stop
) -> Iterator[Callable[[], None]]:
    """Trackers beside what runs inside; yields a look at them, to be called now and then.

    Their end is waited for, but not for long if the user wants the run to `stop`.
    """
    if "wandb" in names and "trackers" not in folder.manifest():
        folder.update_manifest(trackers={"wandb": uuid4().hex[:8]})  # a resumed run's as well
    children = [_Child.start(folder.path, name) for name in names]

    def look() -> None:
        for child in children:
            if trouble := child.trouble():
                say(trouble)

    try:
        yield look
    finally:
        for child in children:
            child.let_finish()
        for child in children:
            say(child.end(stop))


@dataclass
class _Child:
    """A tracker's process, in a session of its own, so that a terminal's Ctrl-C does not reach it."""

    run: Path
    name: str
    process: subprocess.Popen[bytes]
    begun: float = field(default_factory=time.time)
    told: bool = False
    looked: float = 0.0
    ended: float = 0.0

    @classmethod
    def start(cls, run: Path, name: str) -> _Child:
        place(run).mkdir(exist_ok=True)
        with (place(run) / f"{name}.log").open("ab") as log:
            process = subprocess.Popen(
                [
                    sys.executable,
                    "-P",
                    "-m",
                    "zoft.runs.trackers.process",
                    name,
                    str(run.resolve()),
                ],
                stdin=subprocess.PIPE,
                stdout=log,
                stderr=log,
                env=environment(name),
                start_new_session=True,
            )
        return cls(run, name, process)

    def trouble(self) -> str | None:
        """A line, once, if it ended by itself or gives no sign of life. Looks once a second."""
        now = time.monotonic()
        if self.told or now - self.looked < 1.0:
            return None
        self.looked = now
        if self.process.poll() is not None:
            what = self._failure()
        elif self._silence() > LAGGING:
            what = f"no answer for {self._silence():.0f} s"
        else:
            return None
        self.told = True
        return f"warning: {self.name}: {what}; the run goes on, metrics.jsonl has everything"

    def let_finish(self) -> None:
        assert self.process.stdin is not None
        self.ended = time.time()
        with suppress(BrokenPipeError):
            self.process.stdin.close()

    def end(self, stop: Stop) -> str:
        """Wait as long as it works; say where its data is, or what became of it."""
        while self.process.poll() is None and (late := self._late(stop)) is None:
            time.sleep(0.02)
        if self.process.poll() is None:
            with suppress(ProcessLookupError):
                os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()
            what = f"{late}, so it was stopped"
        elif self.process.returncode == 0:
            note = str(read_state(self.run, self.name).get("note", "done"))
            return f"{self.name:<14} {note.replace(str(self.run.resolve()), str(self.run))}"
        else:
            what = self._failure()
        return f"warning: {self.name}: {what}; {self.run}/metrics.jsonl has everything"

    def _late(self, stop: Stop) -> str | None:
        """What it is too late with, if it is."""
        if stop.signal is not None:
            over = time.time() - self.ended >= STOPPED
            return f"not done {STOPPED:g} s after the run was stopped" if over else None
        state = read_state(self.run, self.name)
        loading = state.get("process") != self.process.pid or state["state"] == "loading"
        patience = LOADING if loading else SILENT
        return f"no answer within {patience:g} s" if self._silence() >= patience else None

    def _silence(self) -> float:
        try:
            seen = (place(self.run) / f"{self.name}.json").stat().st_mtime
        except OSError:
            seen = 0.0
        return time.time() - max(seen, self.begun)

    def _failure(self) -> str:
        state = read_state(self.run, self.name)
        if state.get("process") == self.process.pid and state["state"] == "failed":
            return str(state["note"])
        return (
            f"it ended with code {self.process.returncode} (see {place(self.run)}/{self.name}.log)"
        )


def environment(name: str) -> dict[str, str]:
    """The run's environment without secrets of others, ranks and GPUs; zoft can be imported."""
    kept = {
        key: value
        for key, value in os.environ.items()
        if not key.startswith(LAUNCHERS)
        and (key.startswith(OWN[name]) or not any(word in key.upper() for word in SECRET))
    }
    root = str(Path(__file__).parents[1])
    return {
        **kept,
        "PYTHONPATH": os.pathsep.join([root, *filter(None, [kept.get("PYTHONPATH")])]),
        "CUDA_VISIBLE_DEVICES": "",
        "OMP_NUM_THREADS": "1",
        "ACCELERATE_USE_CPU": "true",
    }
