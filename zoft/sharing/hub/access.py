"""Check before a push that the login may write, and that the base model is on the Hub."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

from huggingface_hub import HfApi, get_token

from zoft.errors import EnvironmentProblem
from zoft.sharing.base_model import Base, license_of
from zoft.sharing.hub.retry import LOGIN, Say, with_retries
from zoft.sharing.hub.upload import ensure_repo


def require_login(api: HfApi, repo_id: str, *, say: Say, check: Callable[[], None]) -> None:
    """Ask the Hub who we are; nothing is made.

    Raises EnvironmentProblem without a login, with one that is refused, and with one that may only
    read.
    """
    if get_token() is None:
        raise EnvironmentProblem(f"cannot push to {repo_id}: you are not logged in: {LOGIN}")
    who: dict[str, Any] = with_retries(
        api.whoami, "cannot ask the Hub who you are", say=say, check=check
    )
    token = who.get("auth", {}).get("accessToken", {})
    if token.get("role") == "read":
        raise EnvironmentProblem(
            f"cannot push to {repo_id}: the token of {who.get('name')} may only read; make one that "
            "may write"
        )


def require_write_access(
    api: HfApi, repo_id: str, *, private: bool, say: Say, check: Callable[[], None]
) -> str:
    """Return the repository's full name, after making it: that is the one sure test.

    Raises EnvironmentProblem.
    """
    require_login(api, repo_id, say=say, check=check)
    return ensure_repo(api, repo_id, private=private, say=say, check=check)


def look_up_base(
    api: HfApi, base: Base, here: Path | None, *, say: Say, check: Callable[[], None]
) -> Base:
    """Return the base with the commit that its revision stands for, and the license of its card.

    Says so if its weights are other files than those in the folder `here`, which the run began with
    (the tensors may be equal even so). Raises EnvironmentProblem if it is not on the Hub, or an adapter.
    """
    name = base.name
    assert name is not None
    info = with_retries(
        lambda: api.model_info(name, revision=base.revision, files_metadata=here is not None),
        f"cannot find the base model {name} on the Hub", say=say, check=check,
    )  # fmt: skip
    files = {file.rfilename: file for file in info.siblings or []}
    if "adapter_config.json" in files:
        raise EnvironmentProblem(f"{name} is an adapter, not a base model")
    for weights in sorted(here.glob("*.safetensors")) if here else ():
        lfs = files[weights.name].lfs if weights.name in files else None
        if lfs and lfs.sha256 != _sha256(weights):
            say(f"note: {weights.name} of {name} is not the file that this run began with")
    card: Any = info.card_data
    return Base(name, info.sha, license_of(card.to_dict()) if card else {})


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
