"""From files to a commit: all of them in one, none twice, and none if nothing changed."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from huggingface_hub import CommitOperationAdd, HfApi
from huggingface_hub.hf_api import RepoFile

from zoft.errors import EnvironmentProblem
from zoft.sharing.hub.retry import Say, patiently

CHUNK = 1 << 20
WORTH_SAYING = 20_000_000  # bytes: about a second and more


@dataclass(frozen=True, slots=True)
class Pushed:
    """Where the files are now: the full name, the commit that holds them, how many were new."""

    repo_id: str
    commit: str
    changed: int


def ensure_repo(
    api: HfApi, repo_id: str, *, private: bool, say: Say, check: Callable[[], None]
) -> str:
    """The repository's full name; it is made if it is not there, and it can be written.

    Raises EnvironmentProblem without the right to, and if private things would go to a public one.
    """

    def made() -> str:
        return api.create_repo(repo_id, private=private, exist_ok=True).repo_id

    full = patiently(made, f"cannot push to {repo_id}", say=say, check=check)

    def looked() -> bool:
        api.auth_check(full, write=True)
        return bool(api.model_info(full).private)

    is_private = patiently(looked, f"cannot push to {full}", say=say, check=check)
    if private and not is_private:
        raise EnvironmentProblem(
            f"{full} is public: --public (or hub.private=false) says that you mean that; "
            "or push to another"
        )
    if is_private and not private:
        say(f"note: {full} is private, and stays it; its settings page changes that")
    return full


def upload(
    api: HfApi,
    repo_id: str,
    files: Mapping[str, Path | bytes],
    message: str,
    *,
    revision: str | None,
    say: Say,
    check: Callable[[], None],
) -> Pushed:
    """Make the branch hold `files`, beside what else it has, by one commit or none.

    Every attempt looks anew at what is there: a commit whose answer was lost is not made again, and
    one by somebody else is built upon. Large files that arrived are not sent again.
    """
    branch = revision or "main"
    if revision and revision != "main":
        patiently(
            lambda: api.create_branch(repo_id, branch=branch, exist_ok=True),
            f"cannot make the branch {branch} of {repo_id}", say=say, check=check,
        )  # fmt: skip
    hashes: dict[str, tuple[str, str]] = {}

    def attempt() -> Pushed:
        head = api.model_info(repo_id, revision=branch).sha
        assert head is not None
        there = {
            entry.path: entry
            for entry in api.list_repo_tree(repo_id, recursive=True, revision=head)
            if isinstance(entry, RepoFile)
        }
        for name in files.keys() - hashes.keys():
            hashes[name] = digests(files[name])
        changed = [name for name in files if not _same(there.get(name), hashes[name])]
        if not changed:
            return Pushed(repo_id, head, 0)
        size = sum(_size(files[name]) for name in changed)
        if size > WORTH_SAYING:
            say(f"uploading {len(changed)} files, {size / 1e6:,.0f} MB ...")
        operations = [
            CommitOperationAdd(name, str(content) if isinstance(content, Path) else content)
            for name, content in files.items()
            if name in changed
        ]
        commit = api.create_commit(
            repo_id, operations, commit_message=message, revision=branch, parent_commit=head
        )
        return Pushed(repo_id, commit.oid, len(changed))

    return patiently(attempt, f"cannot push to {repo_id}", say=say, check=check)


def digests(content: Path | bytes) -> tuple[str, str]:
    """(sha256 as LFS names a file, sha1 as git names it)."""
    if isinstance(content, bytes):
        blob = hashlib.sha1(b"blob %d\0" % len(content) + content)
        return hashlib.sha256(content).hexdigest(), blob.hexdigest()
    sha256, blob = hashlib.sha256(), hashlib.sha1(b"blob %d\0" % content.stat().st_size)
    with content.open("rb") as file:
        while piece := file.read(CHUNK):
            sha256.update(piece)
            blob.update(piece)
    return sha256.hexdigest(), blob.hexdigest()


def _size(content: Path | bytes) -> int:
    return content.stat().st_size if isinstance(content, Path) else len(content)


def _same(there: RepoFile | None, hashes: tuple[str, str]) -> bool:
    if there is None:
        return False
    return there.lfs.sha256 == hashes[0] if there.lfs else there.blob_id == hashes[1]
