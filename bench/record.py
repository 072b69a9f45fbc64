"""Result lines of benchmarks and campaigns: one JSON object a line, from which the tables in docs/ are generated.

Every line names the commit and the machine, so that a figure in the docs can be traced to the run that gave it.
"""

from __future__ import annotations

import json
import os
import platform
import subprocess
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "bench" / "results"


def commit() -> str:
    """Short name of the commit, with a + where tracked files differ from it."""

    def git(*words: str) -> str:
        return subprocess.run(["git", *words], cwd=ROOT, capture_output=True, text=True, check=False).stdout.strip()

    changed = git(
        "status", "--porcelain", "--untracked-files=no", "--", ".", ":!bench/results", ":!campaign/results", ":!docs"
    )
    return git("rev-parse", "--short=10", "HEAD") + ("+" if changed else "")


def processor() -> str:
    """Name of the processor."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), platform.machine())


def machine() -> dict[str, Any]:
    """What the figures were measured on."""
    return {"processor": processor(), "cores": os.cpu_count(), "python": platform.python_version()}


class ResultLines:
    """A file of result lines; `fresh` starts it anew, otherwise lines are added (campaigns resume)."""

    def __init__(self, name: str, *, fresh: bool, folder: Path = RESULTS) -> None:
        self.path = folder / f"{name}.jsonl"
        self._about = {"commit": commit(), "machine": machine()}
        self.path.parent.mkdir(parents=True, exist_ok=True)
        if fresh:
            self.path.write_text("")

    def add(self, **row: Any) -> None:
        """Appends one line and syncs it, so that a killed campaign keeps what it has."""
        line = {**row, "when": datetime.now(UTC).isoformat(timespec="seconds"), **self._about}
        with open(self.path, "a", encoding="utf-8") as file:
            file.write(json.dumps(line, sort_keys=True) + "\n")
            file.flush()
            os.fsync(file.fileno())


def read_results(name: str, folder: Path = RESULTS) -> list[dict[str, Any]]:
    """The lines of a result file; empty where there is none."""
    path = folder / f"{name}.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
