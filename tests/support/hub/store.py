"""What the test Hub keeps: repositories whose commits are snapshots, contents by their sha256."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path

FIRST = {".gitattributes": b"*.safetensors filter=lfs diff=lfs merge=lfs -text\n"}


@dataclass(frozen=True)
class Entry:
    """A file in a snapshot. `oid` is git's name for the content, `sha256` ours."""

    sha256: str
    size: int
    oid: str
    lfs: bool

    @property
    def known_as(self) -> str:
        """What the Hub compares a new content with: sha256 of an LFS object, else git's name."""
        return self.sha256 if self.lfs else self.oid

    def as_json(self, path: str) -> dict[str, object]:
        found: dict[str, object] = {
            "type": "file", "path": path, "oid": self.oid, "size": self.size
        }  # fmt: skip
        if self.lfs:
            found["lfs"] = {"oid": self.sha256, "size": self.size, "pointerSize": 130}
        return found


@dataclass
class Repo:
    """Branches point to commits; a commit is every file it has."""

    private: bool
    commits: dict[str, dict[str, Entry]] = field(default_factory=dict)
    branches: dict[str, str] = field(default_factory=dict)

    def commit_of(self, revision: str) -> str | None:
        found = self.branches.get(revision, revision)
        return found if found in self.commits else None


class Store:
    """All repositories, and a folder with their contents."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.repos: dict[str, Repo] = {}
        self.large: set[tuple[str, str]] = set()  # (repository, sha256) of LFS objects that arrived
        self._numbers = count()

    def create(self, name: str, *, private: bool) -> Repo:
        self.repos[name] = Repo(private)
        self.commit(name, "main", {path: self.keep(text) for path, text in FIRST.items()})
        return self.repos[name]

    def keep(self, content: bytes, *, lfs: bool = False) -> Entry:
        sha256 = hashlib.sha256(content).hexdigest()
        (self.folder / sha256).write_bytes(content)
        oid = hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()
        return Entry(sha256, len(content), oid, lfs)

    def read(self, entry: Entry) -> bytes:
        return (self.folder / entry.sha256).read_bytes()

    def keep_large(self, name: str, oid: str, content: bytes) -> bool:
        """An upload; False if it is not what it was said to be."""
        fits = self.keep(content, lfs=True).sha256 == oid
        if fits:
            self.large.add((name, oid))
        return fits

    def commit(self, name: str, branch: str, files: Mapping[str, Entry]) -> str:
        """A new snapshot: what the branch had, with `files` over it."""
        repo = self.repos[name]
        before = repo.commits.get(repo.branches.get(branch, ""), {})
        commit = hashlib.sha1(f"{name} {next(self._numbers)}".encode()).hexdigest()
        repo.commits[commit] = {**before, **files}
        repo.branches[branch] = commit
        return commit

    def files(self, name: str, revision: str = "main") -> dict[str, bytes]:
        """Every file of a branch or commit but the first commit's."""
        repo = self.repos[name]
        found = repo.commits[repo.branches.get(revision, revision)]
        return {path: self.read(entry) for path, entry in found.items() if path not in FIRST}

    def add_folder(self, name: str, folder: Path, *, private: bool = False) -> None:
        """A repository that holds the files of `folder`, weights as LFS objects."""
        self.create(name, private=private)
        files = {
            path.name: self.keep(path.read_bytes(), lfs=path.suffix == ".safetensors")
            for path in folder.iterdir()
        }
        self.commit(name, "main", files)
