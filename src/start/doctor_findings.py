"""What `tokenlabel doctor` says: one line for each thing that it looked at. Used by all its parts."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Literal

COMMAND_TIMEOUT_S = 30.0


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at.

    Attributes:
        status: ok; warn: works, or cannot be told here; fail: jobs would fail.
        area: slurm, gpu, python, data, weights, disk, files, config or node PARTITION.
        found: what there is and where.
        remedy: how to mend it; "" where nothing is to be done.
    """

    status: Literal["ok", "warn", "fail"]
    area: str
    found: str
    remedy: str = ""

    def line(self) -> str:
        """As the terminal shows it."""
        remedy = f" {self.remedy}" if self.remedy else ""
        return f"{self.status:<4} | {self.area:<8} | {self.found}{'.' if remedy and self.found[-1] not in '.!?' else ''}{remedy}"

    def as_json(self) -> dict[str, str]:
        """As `--json` prints it."""
        return asdict(self)


@dataclass(frozen=True)
class Said:
    """What a command answered; code is None where it is not installed or did not answer in time."""

    code: int | None
    text: str
    error: str


def ask(command: Sequence[str], timeout_s: float = COMMAND_TIMEOUT_S) -> Said:
    """Runs a command of the site and gives what it said; never raises for what the site does."""
    if shutil.which(command[0]) is None:
        return Said(None, "", f"{command[0]}: not on PATH")
    try:
        done = subprocess.run(list(command), capture_output=True, text=True, timeout=timeout_s, check=False)
    except subprocess.TimeoutExpired:
        return Said(None, "", f"{command[0]}: no answer within {timeout_s:g} s")
    error = " ".join(done.stderr.split())
    return Said(done.returncode, done.stdout, error)
