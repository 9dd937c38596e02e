"""A Hub, a client process that knows it, a base model on it, and two finished runs: full and LoRA."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator

import pytest
from support import ROOT, small
from support.hub.server import Hub, serving
from support.hub.session import Client, Runs

CARD = "---\nlicense: apache-2.0\n---\n# A base\n"


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
