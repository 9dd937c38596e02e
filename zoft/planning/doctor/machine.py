"""`zoft doctor`: what this machine has, in lines to read and a block to paste into a report.

Every line is found out on its own; what cannot be is said in its line. No token is ever printed.
"""

from __future__ import annotations

import os
import platform
import re
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path

import torch

from zoft import __version__
from zoft.errors import first_line
from zoft.models.storage.fetch import cache_folder
from zoft.system import accelerator
from zoft.system.atomic_io import existing
from zoft.system.device import fast_dtype
from zoft.system.host_memory import free_host_bytes, gib

PACKAGES = (
    "torch", "numba", "triton", "transformers", "tokenizers", "peft", "accelerate", "datasets",
    "safetensors", "huggingface_hub", "numpy", "pydantic", "wandb",
)  # fmt: skip
EXTRAS = {  # package -> the extra that brings it
    "bitsandbytes": "quantization",
    "torchao": "quantization",
    "tensorboard": "tensorboard",
    "trackio": "trackio",
}
VARIABLES = (
    "CUDA_VISIBLE_DEVICES", "HF_ENDPOINT", "HF_HOME", "HF_HUB_OFFLINE", "NUMBA_NUM_THREADS",
    "OMP_NUM_THREADS", "TRITON_INTERPRET", "WANDB_MODE", "XDG_CACHE_HOME",
)  # fmt: skip
SECONDS = 3.0  # for what may hang: the network, a driver, a cache of a million files


def doctor() -> None:
    """Print what is found, one probe after another. Never fails for one of them."""
    probes: tuple[tuple[str, Callable[[], list[str]]], ...] = (
        ("python", _python),
        ("zoft", _zoft),
        ("torch", _torch),
        ("gpu", _gpu),
        ("driver", driver),
        ("triton", _triton),
        ("extras", _extras),
        ("memory", _memory),
        ("disk", _disk),
        ("caches", _caches),
        ("hub", _hub),
        ("settings", _settings),
    )
    for name, probe in probes:
        try:
            lines = probe()
        except Exception as error:  # a broken driver or library is what is looked for here
            lines = [f"cannot be found out: {type(error).__name__}: {first_line(error)}"]
        for number, line in enumerate(lines):
            print(f"{'' if number else name:9} {line}")
    print("\nTo paste into a report:\n")
    for line in _versions():
        print(f"    {line}")


def _python() -> list[str]:
    return [f"{platform.python_version()}, {sys.executable}", platform.platform()]


def _zoft() -> list[str]:
    return [f"{__version__}, {Path(__file__).parent}"]


def _torch() -> list[str]:
    cuda, cpu = torch.version.cuda, torch.backends.cpu.get_cpu_capability()
    build = f"built for CUDA {cuda}" if cuda else "a build without CUDA"
    return [
        f"{torch.__version__}, {build}",
        f"{torch.get_num_threads()} threads of {os.cpu_count()} CPUs, {cpu}, computes in "
        f"{fast_dtype('cpu')} on the CPU",
    ]


def _gpu() -> list[str]:
    first = accelerator.first()
    if first is None:
        return ["torch sees none; runs go to the CPU"]
    kind = first.partition(":")[0]
    lines = []
    for device in (f"{kind}:{number}" for number in range(accelerator.count(kind))):
        free, total = accelerator.memory_bytes(device)
        lines.append(
            f"{device} {accelerator.description(device)}, {gib(free)} of {gib(total)} free, "
            f"computes in {fast_dtype(device)}"
        )
    return lines


def driver() -> list[str]:
    """Cards with their driver's version, as nvidia-smi knows them, or why it does not."""
    tool = shutil.which("nvidia-smi")
    if tool is None:
        return ["no nvidia-smi"]
    query = [tool, "--query-gpu=name,driver_version", "--format=csv,noheader"]
    done = subprocess.run(query, capture_output=True, text=True, timeout=SECONDS, check=False)
    if done.returncode:
        said = (done.stdout + done.stderr).strip().partition("\n")[0]
        return [f"nvidia-smi fails: {said or done.returncode}"]
    lines = done.stdout.strip().splitlines()
    if lines and not torch.version.cuda:
        lines.append("there is a GPU, but this torch was built without CUDA: install another build")
    return lines


def _triton() -> list[str]:
    if not find_spec("triton"):
        return ["not installed; kernels on a GPU need it, on a CPU numba's run"]
    return [f"{version('triton')}, used on GPUs; on the CPU numba {version('numba')}"]


def _extras() -> list[str]:
    return [
        f"{package} {_installed(package) or f'not installed (pip install zoft[{extra}])'}"
        for package, extra in EXTRAS.items()
    ]


def _memory() -> list[str]:
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return [f"{gib(free_host_bytes())} of {gib(total)} free for a run"]


def _disk() -> list[str]:
    from huggingface_hub import constants

    places = {
        "here": Path.cwd(),
        "Hub cache": Path(constants.HF_HUB_CACHE),
        "zoft's": cache_folder(),
    }
    return [
        f"{gib(shutil.disk_usage(existing(path)).free)} free {name} ({path})"
        for name, path in places.items()
    ]


def _caches() -> list[str]:
    from huggingface_hub import constants

    hub, models = Path(constants.HF_HUB_CACHE), cache_folder()
    converted = [path for path in models.glob("*") if path.is_dir()] if models.is_dir() else []
    return [
        f"Hub: {_size(hub)} in {hub}",
        f"models that zoft converted: {len(converted)}, {_size(models)} in {models}",
    ]


def _size(folder: Path) -> str:
    """Of all files below, each once (the Hub's cache links to them); what is counted in time."""
    total, end, seen = 0, time.monotonic() + SECONDS / 2, set()
    for file in _files(folder):
        found = file.lstat()
        if (found.st_dev, found.st_ino) not in seen:
            seen.add((found.st_dev, found.st_ino))
            total += found.st_size
        if time.monotonic() > end:
            return f"more than {gib(total)}"
    return gib(total)


def _files(folder: Path) -> Iterator[Path]:
    for place, _, names in os.walk(folder):
        yield from (Path(place) / name for name in names)


def _hub() -> list[str]:
    from huggingface_hub import constants, get_token, whoami

    where = re.sub(r"//[^/@]*@", "//", constants.ENDPOINT)
    token = get_token()
    if token is None:
        return [f"not logged in at {where}: `hf auth login`, or set HF_TOKEN"]
    said = ["a token is there, but the Hub did not answer in time"]

    def ask() -> None:
        try:
            said[0] = f"logged in at {where} as {whoami(token)['name']}"
        except Exception as error:  # in a thread: what is not said here is lost
            reason = first_line(error).replace(token, "...")
            said[0] = f"a token is there, but {where} does not take it: {reason}"

    # A name server that does not answer has no timeout that could be set.
    asking = threading.Thread(target=ask, daemon=True)
    asking.start()
    asking.join(SECONDS)
    return said[:1]


def _settings() -> list[str]:
    found = [
        f"{name}={re.sub(r'//[^/@]*@', '//', os.environ[name])}"
        for name in VARIABLES
        if name in os.environ
    ]
    return found or ["none of the environment's variables that matter is set"]


def _versions() -> list[str]:
    lines = [f"zoft {__version__}", f"python {platform.python_version()}", platform.platform()]
    return lines + [f"{package} {_installed(package) or '-'}" for package in (*PACKAGES, *EXTRAS)]


def _installed(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None
