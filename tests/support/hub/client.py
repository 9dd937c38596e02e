"""A process that uses the unmodified huggingface_hub client, and takes its orders as lines of JSON.

HF_ENDPOINT and HF_HOME are read when the client is imported, so the tests, which are offline, start
this file. An order names a function below and its arguments; the answer is one line of JSON.
"""

from __future__ import annotations

import contextlib
import io
import json
import logging
import os
import sys
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch
from peft import AutoPeftModelForCausalLM, PeftModel
from transformers import AutoModelForCausalLM

from zoft.cli.main import main
from zoft.errors import ZoftError
from zoft.recipe.load import load_recipe
from zoft.runs.folder import RunFolder
from zoft.sharing.hub import retry
from zoft.sharing.hub.push import push_run
from zoft.sharing.hub.retry import hub_client

retry.ATTEMPTS, retry.FIRST_PAUSE = 4, 0.05
retry.ANSWER_SECONDS = 3.0
ROWS = torch.arange(24).reshape(2, 12)


def zoft(*arguments: str, token: str | None = None) -> dict[str, Any]:
    """The command line: exit code and what it printed."""
    if token is None:
        os.environ.pop("HF_TOKEN", None)
    else:
        os.environ["HF_TOKEN"] = token
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        code = main(list(arguments))
    return {"code": code, "out": out.getvalue(), "err": err.getvalue()}


def pushes(folder: str, repos: Sequence[str], token: str, *overrides: str) -> dict[str, Any]:
    """Pushes of one run to many repositories at the same time: what each said, and why it failed."""
    os.environ["HF_TOKEN"] = token
    run = RunFolder(Path(folder))

    def one(repo: str) -> tuple[list[str], str | None]:
        said: list[str] = []
        recipe = load_recipe(run.resolved, [f"hub.repo_id={repo}", *overrides])
        try:
            push_run(recipe, run, run.final, say=said.append)
        except ZoftError as error:
            return said, str(error)
        return said, None

    with hub_client(), ThreadPoolExecutor(max_workers=12) as pool:
        return dict(zip(repos, pool.map(one, repos), strict=True))


def difference(kind: str, repo: str, base: str, folder: str, token: str) -> float:
    """Largest difference of logits between what the Hub gives and what the run left in `folder`."""
    os.environ["HF_TOKEN"] = token
    if kind == "adapter":
        theirs = AutoPeftModelForCausalLM.from_pretrained(repo)
        ours = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base), folder)
    else:
        theirs = AutoModelForCausalLM.from_pretrained(repo)
        ours = AutoModelForCausalLM.from_pretrained(folder)
    with torch.inference_mode():
        a, b = theirs.eval()(ROWS).logits, ours.eval()(ROWS).logits
    return float((a - b).abs().max())


if __name__ == "__main__":
    answers = os.fdopen(os.dup(1), "w")
    logging.disable()  # torchao and bitsandbytes say what this machine lacks
    os.dup2(2, 1)  # whatever prints to the screen must not stand between the answers
    orders: dict[str, Callable[..., Any]] = {
        "zoft": zoft,
        "pushes": pushes,
        "difference": difference,
    }
    for line in sys.stdin:
        name, arguments, options = json.loads(line)
        print(json.dumps(orders[name](*arguments, **options)), file=answers, flush=True)
