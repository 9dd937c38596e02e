"""A client process that knows a test Hub, and finished runs to push."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from support.hub.server import WRITE


@dataclass
class Client:
    """Orders to a process of client.py; `home` is its HF_HOME."""

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


@dataclass
class Runs:
    """Two finished runs: `lora` on the base by its Hub id, `full` on a folder of the same files."""

    folder: Path
    lora: Path
    full: Path
