"""The process of one tracker: `python -m zoft.runs.trackers.process NAME RUN` (see `trackers`).

It follows RUN/metrics.jsonl until its standard input is closed and all of the file is sent. What it has
sent is written down, so that a resumed run sends nothing twice.
"""

from __future__ import annotations

import json
import os
import select
import signal
import socket
import sys
import traceback
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit
from urllib.request import getproxies

from zoft.recipe.load import load_recipe
from zoft.recipe.schema import Recipe
from zoft.runs.metrics import Event, scalars
from zoft.runs.trackers.state import State, place

POLL = 0.3  # seconds between looks at the file; each is a sign of life


def main(name: str, run: Path) -> int:
    """Set the process up beside a run that is busy: patient, deaf to signals, and without a terminal."""
    for number in (signal.SIGINT, signal.SIGTERM):  # the run says when it is over
        signal.signal(number, signal.SIG_IGN)
    os.nice(10)
    told = os.dup(0)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)  # nothing can ask a question
    with closing(State(run, name)) as state:
        return send(name, run, told, state)


def send(name: str, run: Path, told: int, state: State) -> int:
    """Send a run's metrics to one tracker until the pipe `told` is closed; 0, or 1 for any failure."""
    state.write(state="loading", note="")
    try:
        recipe = load_recipe(run / "resolved.yaml")
        from accelerate import PartialState  # takes seconds; what follows should answer at once

        PartialState(cpu=True)  # the trackers ask it whether they are the main process
        state.write(state="connecting")
        tracker = _start(name, run, recipe, state)
        state.write(state="logging", begun=True)
        for event in follow(run / "metrics.jsonl", told, state):
            if state.is_new(event):
                tracker.log(scalars(event), step=event["step"])
                state.write(sent={**state.values["sent"], event["event"]: event["step"]})
        state.write(state="finishing")
        tracker.finish()
        state.write(state="finished")
    except BaseException as error:
        traceback.print_exc()
        first = next(iter(str(error).splitlines()), "")
        state.write(state="failed", note=f"{type(error).__name__}: {first}"[:300])
        return 1
    return 0


def follow(path: Path, told: int, state: State) -> Iterator[Event]:
    """Every event, as it is appended, until `told` is closed and nothing is left."""
    at, ended = 0, False
    while True:
        if path.exists():
            with path.open("rb") as file:
                file.seek(at)
                whole, newline, _ = file.read().rpartition(b"\n")
            at += len(whole) + len(newline)
            yield from (json.loads(line) for line in whole.splitlines())
        if ended:
            return
        ended = bool(select.select([told], [], [], POLL)[0])
        state.beat()


def _start(name: str, run: Path, recipe: Recipe, state: State) -> Any:
    """A started tracker of accelerate's; the state's note says where its data is."""
    from accelerate import tracking

    config = recipe.model_dump(mode="json")
    again = state.values.get("begun", False)
    tracker: Any
    match name:
        case "wandb":
            os.environ.setdefault("WANDB_X_STATS_PID", str(os.getppid()))  # the run's, not ours
            mode, note = _wandb_mode()
            tracker = tracking.WandBTracker(
                recipe.logging.project, name=run.name, id=_stored_id(run), dir=str(place(run)),
                resume="allow", config=config, mode=mode,
            )  # fmt: skip
            tracker.start()
            where = Path(tracker.run.dir).parent
            state.write(note=note.format(where=where) if note else str(tracker.run.url or where))
        case "tensorboard":
            tracker = tracking.TensorBoardTracker("tensorboard", place(run))
            tracker.start()
            if not again:
                tracker.writer.add_text("recipe", _as_code(run / "resolved.yaml"), 0)
            state.write(note=f"tensorboard --logdir {place(run)}")
        case "trackio":
            tracker = tracking.TrackioTracker(
                recipe.logging.project, name=run.name, resume="allow" if again else "never",
                config=config, embed=False, auto_log_gpu=False, auto_log_cpu=False,
            )  # fmt: skip
            tracker.start()
            state.write(note=f"trackio show --project {recipe.logging.project}")
        case _:
            raise ValueError(f"no tracker is called {name}")
    return tracker


def _wandb_mode() -> tuple[str | None, str]:
    """wandb's mode, and what to tell about it: offline without a login or a server, never a prompt."""
    sync = "offline: wandb sync {where}"
    if mode := os.environ.get("WANDB_MODE"):
        return None, sync if mode == "offline" else ""
    import wandb

    if not wandb.login(prompt=False, verify=False):
        return "offline", f"not logged in, so {sync}"
    server = wandb.setup().settings.base_url
    if not getproxies() and not _answers(server):
        return "offline", f"{server} cannot be reached, so {sync}"
    return "online", ""


def _answers(url: str) -> bool:
    """Whether somebody listens at the host and port of a URL."""
    parts = urlsplit(url)
    try:
        port = parts.port or (80 if parts.scheme == "http" else 443)
        socket.create_connection((parts.hostname or "", port), timeout=5).close()
    except OSError:
        return False
    return True


def _stored_id(run: Path) -> str:
    """wandb's name for this run, which a resumed one goes on with."""
    return str(json.loads((run / "run.json").read_text())["trackers"]["wandb"])


def _as_code(path: Path) -> str:
    """Markdown, as TensorBoard shows texts."""
    return "".join(f"    {line}\n" for line in path.read_text(encoding="utf-8").splitlines())


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], Path(sys.argv[2])))
