"""Faults that the test Hub injects: what goes wrong, and at which request of which repository."""

from __future__ import annotations

import asyncio
import threading
from dataclasses import dataclass, field
from typing import Literal

from starlette.responses import Response
from starlette.types import ASGIApp, Message, Scope, Send

from support.hub.store import Store

# cut: the connection breaks before anything is done; lost: after it was done, before the answer is
# through; hang: no answer for longer than the client waits; stale: somebody else commits first.
Kind = Literal["500", "503", "429", "hang", "cut", "lost", "stale"]
HANG_SECONDS = 6.0
released = threading.Event()  # the server goes down: nobody waits any more


@dataclass
class Fault:
    """`times` requests from number `at` on (counted from 0 within the repository) go wrong."""

    kind: Kind
    at: int
    times: int = 1
    seen: list[str] = field(default_factory=list)  # the paths of the repository's requests
    hit: list[str] = field(default_factory=list)  # those of them that went wrong


class Faults:
    """By repository. A request belongs to the one whose name stands in its path, or else in its body."""

    def __init__(self, store: Store) -> None:
        self.store = store
        self.planned: dict[str, Fault] = {}

    def _due(self, path: str, body: bytes) -> tuple[str, Fault] | None:
        for name, fault in self.planned.items():
            _, _, short = name.partition("/")
            inside = path.startswith("/api/repos/create") and f'"{short}"'.encode() in body
            if f"/{name}" in path or inside or (b"library_name" in body and name.encode() in body):
                number = len(fault.seen)
                fault.seen.append(path)
                if fault.at <= number < fault.at + fault.times:
                    fault.hit.append(path)
                    return name, fault
                return None
        return None

    async def answer(self, app: ASGIApp, scope: Scope, body: bytes, send: Send) -> None:
        """What `app` answers, unless a fault is due."""

        async def receive() -> Message:
            return {"type": "http.request", "body": body, "more_body": False}

        due = self._due(scope["path"], body)
        if due is None:
            await app(scope, receive, send)
            return
        name, fault = due
        match fault.kind:
            case "500" | "503":
                await Response("<html>", status_code=int(fault.kind))(scope, receive, send)
            case "429":
                later = Response(status_code=429, headers={"Retry-After": "1"})
                await later(scope, receive, send)
            case "hang":
                for _ in range(int(HANG_SECONDS / 0.1)):
                    if released.is_set():
                        return
                    await asyncio.sleep(0.1)
                await _broken(send)
            case "cut":
                await _broken(send)
            case "lost":
                await app(scope, receive, _nowhere)
                await _broken(send)
            case "stale":
                self.store.commit(name, "main", {"theirs.txt": self.store.keep(b"theirs")})
                await app(scope, receive, send)


async def _nowhere(_: Message) -> None:
    pass


async def _broken(send: Send) -> None:
    """Half an answer; the exception makes uvicorn close the connection."""
    headers = [(b"content-length", b"1000")]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": b"{", "more_body": True})
    raise ConnectionResetError("injected")
