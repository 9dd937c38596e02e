"""A small Hub: the endpoints that huggingface_hub needs to push and to pull a model, over real HTTP.

`serving(folder)` runs it on a thread. Large files go to another host name (localhost, where the API
is 127.0.0.1), as on the Hub. Every request is logged; faults are injected by repository.
"""

from __future__ import annotations

import base64
import json
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import uvicorn
from huggingface_hub import ModelCard
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp, Receive, Scope, Send

from support.hub import faults
from support.hub.faults import Faults
from support.hub.store import Entry, Store

USER = "tester"
WRITE, READ, STRANGER = "hf_WriteTokenOfTheTests", "hf_ReadTokenOfTheTests", "hf_SomebodyElsesToken"
TOKENS = {WRITE: (USER, "write"), READ: (USER, "read"), STRANGER: ("stranger", "write")}
PART = 100_000  # bytes of a part of a multipart upload
LFS_FROM = 20_000  # a regular file is smaller


def refused(status: int, code: str, message: str) -> JSONResponse:
    headers = {"X-Error-Code": code, "X-Error-Message": message}
    return JSONResponse({"error": message}, status_code=status, headers=headers)


class Hub:
    """The endpoints. `log` has (method, path, token's role or "none") of each request."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.store = Store(folder)
        self.faults = Faults(self.store)
        self.log: list[tuple[str, str, str]] = []
        self.api = self.large = ""  # addresses, once there is a port
        self.parts: dict[tuple[str, int], bytes] = {}

    def app(self) -> ASGIApp:
        model = "/api/models/{owner}/{name}"
        get, post, put = ["GET", "HEAD"], ["POST"], ["PUT"]
        routes = [
            Route("/api/whoami-v2", self.whoami),
            Route("/api/repos/create", self.create, methods=post),
            Route("/api/validate-yaml", self.validate, methods=post),
            Route(model + "/preupload/{revision:path}", self.preupload, methods=post),
            Route(model + "/commit/{revision:path}", self.commit, methods=post),
            Route(model + "/branch/{revision:path}", self.branch, methods=post),
            Route(model + "/auth-check", self.readable),
            Route(model + "/auth-check/write", self.writable),
            Route(model + "/revision/{revision}", self.info),
            Route(model + "/tree/{revision}/{folder:path}", self.tree),
            Route(model + "/tree/{revision}", self.tree),
            Route(model, self.info),
            Route("/{owner}/{name}.git/info/lfs/objects/batch", self.batch, methods=post),
            Route("/{owner}/{name}.git/info/lfs/verify", self.verify, methods=post),
            Route("/{owner}/{name}.git/info/lfs/complete/{oid}", self.complete, methods=post),
            Route("/upload/{owner}/{name}/{oid}/{part:int}", self.put_part, methods=put),
            Route("/upload/{owner}/{name}/{oid}", self.put, methods=put),
            Route("/large/{sha256}", self.get_large, methods=get),
            Route("/{owner}/{name}/resolve/{revision}/{path:path}", self.resolve, methods=get),
        ]
        inner = Starlette(routes=routes)

        async def app(scope: Scope, receive: Receive, send: Send) -> None:
            request = Request(scope, receive)
            body = await request.body()
            _, role = self.caller(request)
            self.log.append((request.method, request.url.path, role))
            await self.faults.answer(inner, scope, body, send)

        return app

    # -- who asks, and for what ---------------------------------------------------------------

    def caller(self, request: Request) -> tuple[str, str]:
        """The user and what the token may do: write, read, bad, or none."""
        header = request.headers.get("authorization", "")
        if not header:
            return "", "none"
        return TOKENS.get(header.removeprefix("Bearer "), ("", "bad"))

    def denied(self, request: Request, *, write: bool = False) -> Response | None:
        """The answer to a request that may not be served."""
        user, role = self.caller(request)
        if role == "bad":
            return refused(401, "", "Invalid credentials in Authorization header")
        name = self.name(request)
        repo = self.store.repos.get(name)
        owns = name.startswith(f"{user}/")
        if repo is None or (repo.private and not owns):
            status = 401 if role == "none" else 404
            return refused(status, "RepoNotFound", "Repository not found")
        if write and role == "none":
            return refused(401, "", "Invalid username or password.")
        if write and not (owns and role == "write"):
            return refused(403, "", "You don't have the rights to write to this repository")
        return None

    def name(self, request: Request) -> str:
        return f"{request.path_params['owner']}/{request.path_params['name']}"

    def at(self, request: Request) -> tuple[str, dict[str, Entry]] | None:
        repo = self.store.repos[self.name(request)]
        commit = repo.commit_of(request.path_params.get("revision", "main"))
        return None if commit is None else (commit, repo.commits[commit])

    # -- endpoints ------------------------------------------------------------------------------

    async def whoami(self, request: Request) -> Response:
        user, role = self.caller(request)
        if not user:
            return refused(401, "", "Invalid credentials in Authorization header")
        token = {"displayName": "test", "role": role}
        auth = {"type": "access_token", "accessToken": token}
        return JSONResponse({"type": "user", "name": user, "orgs": [], "auth": auth})

    async def create(self, request: Request) -> Response:
        body = await request.json()
        user, role = self.caller(request)
        if not user:
            return refused(401, "", "Invalid credentials in Authorization header")
        name = f"{body.get('organization') or user}/{body['name']}"
        answer = {"url": f"{self.api}/{name}", "name": name}
        if role != "write" or not name.startswith(f"{user}/"):
            return refused(403, "", "You don't have the rights to create a model there")
        if name in self.store.repos:
            return JSONResponse({**answer, "error": "You already created it"}, status_code=409)
        self.store.create(name, private=body.get("visibility") == "private")
        return JSONResponse(answer)

    async def validate(self, request: Request) -> Response:
        """As the Hub does: what its own library cannot read as a model card is an error."""
        content = (await request.json())["content"]
        try:
            data: Any = ModelCard(content, ignore_metadata_errors=False).data
            problems = [] if data.to_dict() else ["empty metadata"]
            if data.eval_results is not None and not data.model_name:
                problems.append("model-index without a name")
        except (ValueError, TypeError, KeyError) as error:
            problems = [str(error)]
        found = [{"message": problem} for problem in problems]
        status = 400 if found else 200
        return JSONResponse({"errors": found, "warnings": []}, status_code=status)

    async def info(self, request: Request) -> Response:
        if no := self.denied(request):
            return no
        found = self.at(request)
        if found is None:
            return refused(404, "RevisionNotFound", "Invalid rev id")
        commit, files = found
        name = self.name(request)
        card = {}
        if "README.md" in files:
            text = self.store.read(files["README.md"]).decode()
            data: Any = ModelCard(text, ignore_metadata_errors=True).data
            card = data.to_dict()
        siblings = [
            {
                "rfilename": path,
                "lfs": {"sha256": entry.sha256, "size": entry.size, "pointerSize": 130},
            }
            if entry.lfs and request.query_params.get("blobs")
            else {"rfilename": path}
            for path, entry in files.items()
        ]
        private = self.store.repos[name].private
        return JSONResponse({
            "id": name, "modelId": name, "sha": commit, "private": private, "tags": [],
            "siblings": siblings, "cardData": card, "downloads": 0, "likes": 0,
        })  # fmt: skip

    async def tree(self, request: Request) -> Response:
        if no := self.denied(request):
            return no
        found = self.at(request)
        if found is None:
            return refused(404, "RevisionNotFound", "Invalid rev id")
        folder = request.path_params.get("folder", "")
        below = f"{folder}/" if folder else ""
        listed = [e.as_json(path) for path, e in found[1].items() if path.startswith(below)]
        if below and not listed:
            return refused(404, "EntryNotFound", f"{folder} does not exist")
        return JSONResponse(listed)

    async def branch(self, request: Request) -> Response:
        if no := self.denied(request, write=True):
            return no
        repo, revision = self.store.repos[self.name(request)], request.path_params["revision"]
        if revision in repo.branches:
            return refused(409, "", "Reference already exists")
        repo.branches[revision] = repo.branches["main"]
        return JSONResponse({})

    async def readable(self, request: Request) -> Response:
        return self.denied(request) or JSONResponse({})

    async def writable(self, request: Request) -> Response:
        return self.denied(request, write=True) or JSONResponse({})

    async def preupload(self, request: Request) -> Response:
        if no := self.denied(request, write=True):
            return no
        found = self.at(request)
        files = found[1] if found else {}
        return JSONResponse({
            "files": [
                {
                    "path": file["path"],
                    "uploadMode": "lfs"
                    if file["size"] >= LFS_FROM or file["path"].endswith(".safetensors")
                    else "regular",
                    "shouldIgnore": False,
                    "oid": files[file["path"]].known_as if file["path"] in files else None,
                }
                for file in (await request.json())["files"]
            ]
        })  # fmt: skip

    async def batch(self, request: Request) -> Response:
        if no := self.denied(request, write=True):
            return no
        name, objects = self.name(request), []
        for wanted in (await request.json())["objects"]:
            oid, size = wanted["oid"], wanted["size"]
            answer = {"oid": oid, "size": size}
            if (name, oid) not in self.store.large:
                upload: dict[str, object] = {"href": f"{self.large}/upload/{name}/{oid}"}
                if size > PART:
                    parts = {
                        str(part + 1): f"{upload['href']}/{part}"
                        for part in range(-(-size // PART))
                    }
                    upload = {
                        "href": f"{self.api}/{name}.git/info/lfs/complete/{oid}",
                        "header": {"chunk_size": str(PART), **parts},
                    }
                verify = {"href": f"{self.api}/{name}.git/info/lfs/verify"}
                answer["actions"] = {"upload": upload, "verify": verify}
            objects.append(answer)
        return JSONResponse({"transfer": "basic", "objects": objects})

    async def put(self, request: Request) -> Response:
        body, oid = await request.body(), request.path_params["oid"]
        fits = self.store.keep_large(self.name(request), oid, body)
        return Response(status_code=200 if fits else 400)

    async def put_part(self, request: Request) -> Response:
        part = request.path_params["part"]
        self.parts[request.path_params["oid"], part] = await request.body()
        return Response(headers={"etag": f'"{part}"'})

    async def complete(self, request: Request) -> Response:
        if no := self.denied_anonymous(request):
            return no
        oid = request.path_params["oid"]
        count = len((await request.json())["parts"])
        content = b"".join(self.parts[oid, part] for part in range(count))
        fits = self.store.keep_large(self.name(request), oid, content)
        return JSONResponse({}, status_code=200 if fits else 400)

    def denied_anonymous(self, request: Request) -> Response | None:
        """A signed address carries its own right; what is known of the repository must exist."""
        missing = self.name(request) not in self.store.repos
        return refused(404, "RepoNotFound", "Repository not found") if missing else None

    async def verify(self, request: Request) -> Response:
        if no := self.denied(request, write=True):
            return no
        there = (self.name(request), (await request.json())["oid"]) in self.store.large
        return JSONResponse({}, status_code=200 if there else 404)

    async def commit(self, request: Request) -> Response:
        if no := self.denied(request, write=True):
            return no
        found = self.at(request)
        if found is None:
            return refused(404, "RevisionNotFound", "Invalid rev id")
        head, _ = found
        files: dict[str, Entry] = {}
        for line in (await request.body()).splitlines():
            item = json.loads(line)
            value = item["value"]
            match item["key"]:
                case "header":
                    if value.get("parentCommit", head) != head:
                        return refused(412, "", "A commit has happened since. Please refresh.")
                case "file":
                    files[value["path"]] = self.store.keep(base64.b64decode(value["content"]))
                case "lfsFile":
                    if (self.name(request), value["oid"]) not in self.store.large:
                        return refused(422, "", f"no LFS object {value['oid']}")
                    content = (self.store.folder / value["oid"]).read_bytes()
                    files[value["path"]] = self.store.keep(content, lfs=True)
        name = self.name(request)
        commit = self.store.commit(name, request.path_params["revision"], files)
        url = f"{self.api}/{name}/commit/{commit}"
        return JSONResponse({"success": True, "commitOid": commit, "commitUrl": url})

    async def resolve(self, request: Request) -> Response:
        if no := self.denied(request):
            return no
        found = self.at(request)
        if found is None:
            return refused(404, "RevisionNotFound", "Invalid rev id")
        commit, files = found
        entry = files.get(request.path_params["path"])
        if entry is None:
            answer = refused(404, "EntryNotFound", "Entry not found")
            answer.headers["X-Repo-Commit"] = commit
            return answer
        headers = {"X-Repo-Commit": commit, "ETag": f'"{entry.oid}"'}
        if entry.lfs:
            headers |= {
                "Location": f"{self.large}/large/{entry.sha256}",
                "X-Linked-Etag": f'"{entry.sha256}"',
                "X-Linked-Size": str(entry.size),
            }
            return Response(status_code=302, headers=headers)
        return self.content(request, self.store.read(entry), headers)

    async def get_large(self, request: Request) -> Response:
        content = (self.store.folder / request.path_params["sha256"]).read_bytes()
        return self.content(request, content, {})

    def content(self, request: Request, body: bytes, headers: dict[str, str]) -> Response:
        if request.method == "HEAD":
            return Response(headers={**headers, "Content-Length": str(len(body))})
        return Response(body, headers=headers)


@contextmanager
def serving(folder: Path) -> Iterator[Hub]:
    """The Hub on a free port, on a thread, until the block ends."""
    hub = Hub(folder)
    config = uvicorn.Config(
        hub.app(), host="127.0.0.1", port=0, log_level="critical", lifespan="off", ws="none",
        http="h11", loop="asyncio", timeout_graceful_shutdown=1,
    )  # fmt: skip
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    while not server.started:
        time.sleep(0.01)
    port = server.servers[0].sockets[0].getsockname()[1]
    hub.api, hub.large = f"http://127.0.0.1:{port}", f"http://localhost:{port}"
    try:
        yield hub
    finally:
        faults.released.set()
        server.should_exit = True
        thread.join(timeout=10)
