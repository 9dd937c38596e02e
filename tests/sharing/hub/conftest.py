"""A Hub, a client process that knows it, a base model on it, and two finished runs: full and LoRA."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import pytest
from support import ROOT, small
from support.hub.server import WRITE, Hub, serving

CARD = "---\nlicense: apache-2.0\n---\n# A base\n"


@dataclass
class Client:
    """Orders to a process of tests/hub/client.py; `home` is its HF_HOME."""

    orders: IO[str]
    answers: IO[str]
    home: Path

    def __call__(self, name: str, *arguments: Any, **options: Any) -> Any:
        print(json.dumps([name, arguments, options]), file=self.orders, flush=True)
        line = self.answers.readline()
        assert line, "the client died"
        return json.loads(line)

    def zoft(self, *arguments: Any, token: str | None = WRITE) -> Any:
        return self("zoft", *map(str, arguments), token=token)


@pytest.fixture(scope="session")
def hub(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Hub]:
    with serving(tmp_path_factory.mktemp("hub")) as found:
        yield found


@pytest.fixture(scope="session")
def client(hub: Hub, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Client]:
    home = tmp_path_factory.mktemp("home")
    left_out = ("HF_HUB_OFFLINE", "HF_TOKEN")
    inherited = {name: value for name, value in os.environ.items() if name not in left_out}
    environment = {
        **inherited, "HF_ENDPOINT": hub.api, "HF_HOME": str(home), "HF_HUB_DISABLE_XET": "1",
        "PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "tests")]),
        "PYTHONWARNINGS": "ignore", "HF_HUB_DISABLE_TELEMETRY": "1",
        "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    }  # fmt: skip
    command = [sys.executable, str(ROOT / "tests/support/hub/client.py")]
    with subprocess.Popen(
        command, env=environment, text=True, stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        yield Client(process.stdin, process.stdout, home)
        process.stdin.close()


@dataclass
class Runs:
    """Two finished runs: `lora` on the base by its Hub id, `full` on a folder of the same files."""

    folder: Path
    lora: Path
    full: Path


@pytest.fixture(scope="session")
def runs(hub: Hub, client: Client, tmp_path_factory: pytest.TempPathFactory) -> Runs:
    folder = tmp_path_factory.mktemp("runs")
    recipe = small.write(folder, "full")
    (folder / "model" / "README.md").write_text(CARD)
    hub.store.add_folder("tester/base", folder / "model")
    full, lora = folder / "full", folder / "lora"
    for out, more in (
        (full, ["checkpoint.every=0"]),
        (lora, ["tune.method=lora", "optimizer.lr=1e-2", "model.name=tester/base"]),
    ):
        done = client.zoft("train", recipe, "--output-dir", out, *more)
        assert done["code"] == 0, done
    for picture in (full / "final" / "loss.png", full / "loss.png"):
        picture.unlink(
            missing_ok=True
        )  # a second large file would go up beside the parts of the first
    return Runs(folder, lora, full)
