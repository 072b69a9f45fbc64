"""This machine: Python, packages against requirements.lock, GPUs. Called by `tokenlabel doctor`, here and on compute nodes."""

from __future__ import annotations

import json
import platform
import re
import subprocess
import sys
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path

from .doctor_findings import Finding, ask

PYTHON_NEEDED = (3, 11)
TORCH_TIMEOUT_S = 120.0
SHOWN = 4
LOCKED = re.compile(r"^([A-Za-z0-9._-]+)==([^\s;#]+)")
# in a process of its own: a torch that crashes or hangs takes nothing with it
ASK_TORCH = """
import json, torch
found = [torch.cuda.get_device_properties(i) for i in range(torch.cuda.device_count())]
print(json.dumps({"version": torch.__version__, "cuda": torch.version.cuda, "mps": torch.backends.mps.is_available(),
                  "gpus": [f"{gpu.name} {gpu.total_memory / 2**30:.0f} GiB" for gpu in found]}))
"""


def look_at_python(lock: Path) -> Iterator[Finding]:
    """Yields what does not fit: the interpreter, packages that are missing or of other versions than the lock's."""
    version = platform.python_version()
    if sys.version_info < PYTHON_NEEDED:
        yield Finding(
            "fail",
            "python",
            f"Python {version} at {sys.executable}",
            "3.11 or newer is needed: make venv PYTHON=python3.11",
        )
    else:
        yield Finding("ok", "python", f"Python {version} at {sys.executable}")
    if not lock.is_file():
        yield Finding(
            "warn", "python", f"{lock}: no such file, so versions cannot be compared", "Run this in the checkout"
        )
        return
    missing, others, count = [], [], 0
    for line in lock.read_text(encoding="utf-8").splitlines():
        if match := LOCKED.match(line):
            count += 1
            try:
                installed = metadata.version(match[1])
            except metadata.PackageNotFoundError:
                missing.append(match[1])
                continue
            if installed.split("+")[0] != match[2].split("+")[0]:
                others.append(f"{match[1]} {installed} (lock: {match[2]})")
    install = f"pip install -r {lock}"
    if missing:
        yield Finding(
            "fail",
            "python",
            f"{len(missing)} of {count} packages of {lock.name} are missing: {_some(missing)}",
            install,
        )
    if others:
        yield Finding(
            "warn", "python", f"{len(others)} of {count} packages have other versions: {_some(others)}", install
        )
    if not missing and not others:
        yield Finding("ok", "python", f"{count} packages as in {lock.name}")


def look_at_gpus(device: str, *, needed: bool, area: str = "gpu") -> Iterator[Finding]:
    """Yields what torch sees.

    Args:
        device: machine.device.
        needed: whether jobs run on this machine and are to have a GPU; on a login node none is no fault.
        area: of the finding.
    """
    try:
        done = subprocess.run(
            [sys.executable, "-c", ASK_TORCH], capture_output=True, text=True, timeout=TORCH_TIMEOUT_S, check=False
        )
    except subprocess.TimeoutExpired:
        yield Finding(
            "fail",
            area,
            f"import torch took more than {TORCH_TIMEOUT_S:g} s",
            "The file system of the environment may hang",
        )
        return
    if done.returncode != 0:
        reason = (done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[-1]
        yield Finding(
            "fail",
            area,
            f"import torch fails ({reason})",
            "pip install -r requirements.lock in the environment that runs jobs",
        )
        return
    seen = json.loads(done.stdout.splitlines()[-1])
    if seen["gpus"]:
        yield Finding("ok", area, f"torch {seen['version']} sees {len(seen['gpus'])}: {_some(seen['gpus'])}")
        return
    driver = ask(["nvidia-smi", "-L"])
    if driver.code == 0 and driver.text.strip():
        yield Finding(
            "fail",
            area,
            f"nvidia-smi lists a GPU, torch {seen['version']} (CUDA {seen['cuda']}) does not see it",
            "Install the torch build that fits the driver (nvidia-smi shows its CUDA), or unset CUDA_VISIBLE_DEVICES",
        )
    elif device == "cuda" and needed:
        yield Finding(
            "fail",
            area,
            "machine.device is cuda and there is no GPU here",
            "Set machine.device to auto, or run where GPUs are",
        )
    elif device == "cpu":
        yield Finding("ok", area, "none, and machine.device is cpu")
    elif needed and not seen["mps"]:
        yield Finding(
            "warn",
            area,
            "no GPU here: jobs would run on the processor",
            "Ask for a GPU, or set machine.device: cpu if that is meant",
        )
    else:
        yield Finding("ok", area, f"torch {seen['version']}, no GPU here: jobs get theirs on compute nodes")


def _some(names: list[str]) -> str:
    more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return ", ".join(names[:SHOWN]) + more
