"""Send a run's metrics to its trackers: `python -m zoft.runs.trackers.process RUN NAME...`.

A thread for each tracker reads RUN/metrics.jsonl until standard input ends and all of the file is sent,
so that a tracker that hangs keeps no other from its values. What was sent is written down, so that a
resumed run sends nothing twice.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import sys
import threading
import traceback
from collections.abc import Iterator, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit
from urllib.request import getproxies

from zoft.errors import first_line
from zoft.recipe.load import load_recipe
from zoft.runs.metrics import Event, scalars
from zoft.system.atomic_io import lock

POLL_SECONDS = 0.3  # between looks at the file
# After the end of standard input. Longer than a run waits (launcher.FINISH_SECONDS): only a process
# whose run was killed lives as long.
ORPHAN_SECONDS = 60.0
MODULES = {"wandb": "wandb", "tensorboard": "torch.utils.tensorboard", "trackio": "trackio"}
_importing = threading.Lock()  # two threads that import at once can find modules half loaded


def main(run: Path, names: Sequence[str]) -> None:
    """Follow a busy run: at low priority, deaf to signals, without a terminal, until stdin ends."""
    for number in (signal.SIGINT, signal.SIGTERM):  # the run says when it is over
        signal.signal(number, signal.SIG_IGN)
    os.nice(10)
    with (
        Path(os.devnull).open() as sys.stdin,  # nothing can ask a question
        (place(run) / "lock").open("w") as file,
    ):
        lock(file)  # an earlier part of the run may still be sending
        ended = threading.Event()
        threads = start_threads(run, names, ended)
        while os.read(0, 1):
            pass
        ended.set()
        signal.setitimer(signal.ITIMER_REAL, ORPHAN_SECONDS)  # the kernel ends whatever hangs
        for thread in threads:
            thread.join()


def start_threads(
    run: Path, names: Sequence[str], ended: threading.Event
) -> list[threading.Thread]:
    """Start a thread for each tracker, which sends what the run writes until `ended` is set."""
    threads = [
        threading.Thread(target=_send, args=(run, name, ended), name=name, daemon=True)
        for name in names
    ]
    for thread in threads:
        thread.start()
    return threads


def place(run: Path) -> Path:
    """Return where a run's trackers keep what they have: NAME.json, and files of their own."""
    return run / "trackers"


def read_state(run: Path, name: str) -> dict[str, Any]:
    """Return what a tracker's thread has written to NAME.json, or nothing.

    `state`: starting, sending, finished or failed; `note`: where the data is, or what failed; `process`:
    its id; `sent`: the newest step of each kind of event; `begun`: whether it ever got to sending.
    """
    try:
        content = json.loads((place(run) / f"{name}.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}


def _send(run: Path, name: str, ended: threading.Event) -> None:
    """Send all events to one tracker. Any failure is written to its state and to stderr."""
    state = {"sent": {}, **read_state(run, name), "process": os.getpid(), "note": ""}

    def write(**values: Any) -> None:
        state.update(values)
        partial = place(run) / f"{name}.tmp"
        partial.write_text(json.dumps(state), encoding="utf-8")
        partial.replace(place(run) / f"{name}.json")  # no fsync: it would slow the run's own

    write(state="starting")
    try:
        tracker, note = _start(run, name, again=state.get("begun", False))
        write(state="sending", begun=True, note=note)
        for event in _follow(run / "metrics.jsonl", ended):
            kind, step, sent = event["event"], event["step"], state["sent"]
            if kind == "final" or step > sent.get(kind, -1):  # `final` may come again
                tracker.log(scalars(event), step=step)
                write(sent={**sent, kind: step})
        tracker.finish()
        write(state="finished")
    except BaseException as error:  # a tracker may even exit
        traceback.print_exc()
        write(state="failed", note=f"{type(error).__name__}: {first_line(error)}"[:300])


def _follow(path: Path, ended: threading.Event) -> Iterator[Event]:
    """Yield every event, as it is appended, until `ended` is set and nothing is left."""
    at, last = 0, False
    while not last:
        last = ended.is_set()
        if path.exists():
            with path.open("rb") as file:
                file.seek(at)
                whole, newline, _ = file.read().rpartition(b"\n")
            at += len(whole) + len(newline)
            yield from (json.loads(line) for line in whole.splitlines())
        if not last:
            ended.wait(POLL_SECONDS)


def _start(run: Path, name: str, *, again: bool) -> tuple[Any, str]:
    """Return a started tracker of accelerate's, and a note on where its data is."""
    with _importing:
        from accelerate import PartialState, tracking

        PartialState(cpu=True)  # the trackers ask it whether they are the main process
        import_module(MODULES[name])
    recipe = load_recipe(run / "resolved.yaml")
    config, project = recipe.model_dump(mode="json"), recipe.logging.project
    tracker: Any
    if name == "wandb":
        mode, note = _wandb_mode()
        tracker = tracking.WandBTracker(
            project, name=run.name, id=_stored_id(run), dir=str(place(run)), resume="allow",
            config=config, mode=mode,
        )  # fmt: skip
        tracker.start()
        where = Path(tracker.run.dir).parent
        return tracker, note.format(where=where) if note else str(tracker.run.url or where)
    if name == "tensorboard":
        tracker = tracking.TensorBoardTracker("tensorboard", place(run))
        tracker.start()
        if not again:
            tracker.writer.add_text("recipe", _as_code(run / "resolved.yaml"), 0)
        return tracker, f"tensorboard --logdir {place(run)}"
    tracker = tracking.TrackioTracker(
        project, name=run.name, resume="allow" if again else "never", config=config, embed=False,
        auto_log_gpu=False, auto_log_cpu=False,
    )  # fmt: skip
    tracker.start()
    return tracker, f"trackio show --project {project}"


def _wandb_mode() -> tuple[str | None, str]:
    """Return wandb's mode and a note on it: offline without a login or a server, never a prompt."""
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
    """Return whether somebody listens at the host and port of a URL."""
    parts = urlsplit(url)
    try:
        port = parts.port or (80 if parts.scheme == "http" else 443)
        socket.create_connection((parts.hostname or "", port), timeout=5).close()
    except OSError:
        return False
    return True


def _stored_id(run: Path) -> str:
    """Return wandb's id for this run, with which a resumed one continues."""
    return str(json.loads((run / "run.json").read_text())["trackers"]["wandb"])


def _as_code(path: Path) -> str:
    """Return the file as Markdown code, for TensorBoard shows texts as Markdown."""
    return "".join(f"    {line}\n" for line in path.read_text(encoding="utf-8").splitlines())


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2:])
