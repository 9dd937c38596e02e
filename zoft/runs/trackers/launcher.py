"""Start the process that sends a run's metrics to wandb, TensorBoard and trackio, and end it.

The run sends nothing and waits for nothing: the process reads metrics.jsonl as it grows. A tracker that
fails, hangs or is killed costs one line on the screen. At the end of the run the process's pipe is
closed; it then has some seconds to send the rest.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from importlib.util import find_spec
from pathlib import Path
from typing import Any
from uuid import uuid4

import zoft
from zoft.errors import EnvironmentProblem
from zoft.runs.folder import RunFolder
from zoft.runs.trackers import process
from zoft.runs.trackers.process import place, read_state
from zoft.system.signals import Stop

# From the end of the run until the process is killed. A run of seconds ends while accelerate, torch and
# wandb still load (up to 20 s where the disk is cold and the CPUs are busy), and the last upload takes
# some more. All that a run loses by a tracker that hangs is this time.
FINISH_SECONDS = 30.0
STOPPED_SECONDS = (
    2.0  # the same where the user, or a scheduler about to kill, wants the run to end now
)
LOOK_SECONDS = 1.0  # between looks at what the process has written down
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
    """Send what the block writes to the trackers; yields a look at them, to be called now and then.

    Their end is waited for, but not for long if the user wants the run to `stop`.
    """
    if not names:
        yield lambda: None
        return
    if "wandb" in names and "trackers" not in folder.manifest():
        folder.update_manifest(trackers={"wandb": uuid4().hex[:8]})  # a resumed run's as well
    follower = _Follower(folder.path, names)

    def look() -> None:
        for line in follower.new_failures():
            say(line)

    try:
        yield look
    finally:
        follower.end(stop)
        for name in names:
            say(follower.outcome(name))


class _Follower:
    """The process of a run's trackers, in a session of its own: no terminal's Ctrl-C reaches it."""

    def __init__(self, run: Path, names: Sequence[str]) -> None:
        self.run, self.names, self.log = run, names, place(run) / "log.txt"
        self._told: set[str] = set()  # names whose failure was told
        self._looked = 0.0
        self._killed = ""  # why, if it was
        place(run).mkdir(exist_ok=True)
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-P", "-m", process.__name__, str(run.resolve()), *names],
                stdin=subprocess.PIPE,
                stdout=log,
                stderr=log,
                env=environment(names),
                start_new_session=True,
            )

    def new_failures(self) -> Iterator[str]:
        """Yield a line for each tracker that has failed since the last look."""
        now = time.monotonic()
        if now - self._looked < LOOK_SECONDS:
            return
        self._looked = now
        for name in self.names:
            if name not in self._told and (what := self._failure(name)):
                self._told.add(name)
                yield f"warning: {name}: {what}; the run goes on, metrics.jsonl has everything"

    def end(self, stop: Stop) -> None:
        """Close the pipe, wait, and kill what is late."""
        assert self.process.stdin is not None
        self.process.stdin.close()
        closed = time.monotonic()
        while self.process.poll() is None and not self._killed:
            waited = time.monotonic() - closed
            if stop.signal is not None and waited >= STOPPED_SECONDS:
                self._killed = f"not done {STOPPED_SECONDS:g} s after the run was stopped"
            elif waited >= FINISH_SECONDS:
                self._killed = f"no answer within {FINISH_SECONDS:g} s"
            time.sleep(0.02)
        if self._killed:
            with suppress(ProcessLookupError):
                os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()

    def outcome(self, name: str) -> str:
        """Return a line on where the tracker's data is, or what became of it."""
        if what := self._failure(name):
            return f"warning: {name}: {what}; {self.run}/metrics.jsonl has everything"
        note = str(self._state(name)["note"])
        return f"{name:<14} {note.replace(str(self.run.resolve()), str(self.run))}"

    def _state(self, name: str) -> dict[str, Any]:
        """Return what this process, and not that of an earlier part of the run, has written down."""
        state = read_state(self.run, name)
        return state if state.get("process") == self.process.pid else {}

    def _failure(self, name: str) -> str | None:
        code, state = self.process.poll(), self._state(name)
        if state.get("state") == "failed":
            return str(state["note"])
        if state.get("state") == "finished" or code is None:
            return None
        if self._killed:
            return f"{self._killed}, so it was stopped"
        return f"it ended with code {code} (see {self.log})"


def environment(names: Sequence[str]) -> dict[str, str]:
    """Return the run's environment without the secrets of others, ranks and GPUs; it can import zoft."""
    own = tuple(prefix for name in names for prefix in OWN[name])
    kept = {
        key: value
        for key, value in os.environ.items()
        if not key.startswith(LAUNCHERS)
        and (key.startswith(own) or not any(word in key.upper() for word in SECRET))
    }
    root = str(Path(zoft.__file__).parents[1])
    return {
        "WANDB_CONSOLE": "off",  # what other trackers print is none of wandb's business
        "WANDB_X_STATS_PID": str(os.getpid()),  # the run's CPU and memory, not the process's
        **kept,
        "PYTHONPATH": os.pathsep.join([root, *filter(None, [kept.get("PYTHONPATH")])]),
        "CUDA_VISIBLE_DEVICES": "",
        "OMP_NUM_THREADS": "1",
        "ACCELERATE_USE_CPU": "true",
    }
