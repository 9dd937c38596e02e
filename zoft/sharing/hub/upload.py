"""Commit files to the Hub: all of them in one commit, none twice, and none if nothing changed."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from huggingface_hub import CommitOperationAdd, HfApi

from zoft.errors import EnvironmentProblem
from zoft.sharing.hub.retry import Say, with_retries

WORTH_SAYING = 20_000_000  # bytes: about a second and more


@dataclass(frozen=True, slots=True)
class Pushed:
    """The repository's full name, the commit that holds the files, their number (0: none changed)."""

    repo_id: str
    commit: str
    files: int


def ensure_repo(
    api: HfApi, repo_id: str, *, private: bool, say: Say, check: Callable[[], None]
) -> str:
    """Return the repository's full name, after making it if need be; it can be written.

    Raises EnvironmentProblem without the right to, and if private things would go to a public one.
    """

    def made() -> str:
        return api.create_repo(repo_id, private=private, exist_ok=True).repo_id

    full = with_retries(made, f"cannot push to {repo_id}", say=say, check=check)

    def looked() -> bool:
        api.auth_check(full, write=True)
        return bool(api.model_info(full).private)

    is_private = with_retries(looked, f"cannot push to {full}", say=say, check=check)
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
    """Make the branch hold `files`, in addition to what it has, by one commit or none.

    huggingface_hub leaves files that did not change out of a commit, and makes none without any.
    Every attempt asks it anew: a commit whose answer was lost is not made again, and one by somebody
    else is built upon. Large files that arrived are not sent again.
    """
    branch = revision or "main"
    if revision and revision != "main":
        with_retries(
            lambda: api.create_branch(repo_id, branch=branch, exist_ok=True),
            f"cannot make the branch {branch} of {repo_id}", say=say, check=check,
        )  # fmt: skip
    size = sum(size_of(content) for content in files.values())
    if size > WORTH_SAYING:
        say(f"uploading what is new of {len(files)} files, {size / 1e6:,.0f} MB ...")

    def attempt() -> Pushed:
        head = api.model_info(repo_id, revision=branch).sha
        assert head is not None
        # New ones each time: an operation keeps what the Hub said about its file.
        operations = [CommitOperationAdd(name, content) for name, content in files.items()]
        commit = api.create_commit(
            repo_id, operations, commit_message=message, revision=branch, parent_commit=head
        )
        return Pushed(repo_id, commit.oid, 0 if commit.oid == head else len(files))

    return with_retries(attempt, f"cannot push to {repo_id}", say=say, check=check)


def size_of(content: Path | bytes) -> int:
    return content.stat().st_size if isinstance(content, Path) else len(content)
