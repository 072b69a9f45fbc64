"""What jobs that ran have cost, from the files they left. Read by tables and by the plan; writes nothing.

Snakemake's benchmark file of a job holds the seconds of its last attempt only. A training that was killed and went on from
its checkpoint has more behind it: its summary.json counts every step of every attempt, but no validation and no start of a
process. So a run has cost the larger of the two. Work that a kill threw away, at most `machine.checkpoint_seconds` of it, is
in neither. The number of processes, one GPU each, is in done.json. Labels, adaptations and evaluations have the benchmark
file alone; a shard that was killed counts from its last attempt on.
"""

from __future__ import annotations

import csv
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from .errors import DataError
from .files import read_json


def gpu_hours(base: Path, runs: Sequence[str], seed: int, gpus: int | None = None, kind: str = "runs") -> float | None:
    """GPU hours of one seed of a chain of runs.

    Args:
        base: folder that holds benchmarks/ and results/.
        runs: folder names under results/runs, as in a table plan's `chain`.
        seed: of all of them.
        gpus: that each job held; None: one for each process that done.json names.
        kind: folder of results/ and benchmarks/ that they are in: runs, or segmentation.

    Returns:
        Hours, or None where a run is not finished or left nothing to tell them by.

    Raises:
        DataError: a file that is there says nothing sensible.
    """
    hours = 0.0
    for run in runs:
        seconds = run_seconds(base, run, seed, kind)
        if seconds is None:
            return None
        hours += seconds * (gpus or run_processes(base, run, seed, kind)) / 3600
    return hours if runs else None


def run_seconds(base: Path, run: str, seed: int, kind: str = "runs") -> float | None:
    """Seconds of one finished run with all its legs and attempts; None where it is not finished or left nothing.

    Raises:
        DataError: a file that is there says nothing sensible.
    """
    benchmarks, folder = (base / top / kind / run / f"seed{seed}" for top in ("benchmarks", "results"))
    found = []
    if (last := job_seconds(benchmarks / "train.tsv")) is not None:
        legs = [job_seconds(path) for path in sorted(benchmarks.glob("leg-*.tsv"))]
        found.append(last + sum(filter(None, legs)))
    if (summary := _document(folder / "summary.json")) is not None:
        found.append(_seconds(summary.get("seconds"), folder / "summary.json"))
    return max(found, default=None)


def run_processes(base: Path, run: str, seed: int, kind: str = "runs") -> int:
    """Processes that trained a run, 1 where nothing says."""
    done = _document(base / "results" / kind / run / f"seed{seed}" / "done.json") or {}
    processes = done.get("processes", 1)
    return processes if isinstance(processes, int) and processes > 0 else 1


def job_seconds(benchmark: Path) -> float | None:
    """Seconds in a benchmark file of Snakemake, the mean over its lines (one a repetition); None where there is none.

    Raises:
        DataError: it is no such file.
    """
    try:
        with benchmark.open(encoding="utf-8", newline="") as file:
            seconds = [_seconds(row.get("s"), benchmark) for row in csv.DictReader(file, delimiter="\t")]
    except FileNotFoundError:
        return None
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise _malformed(benchmark, f"cannot be read ({error})") from None
    if not seconds:
        raise _malformed(benchmark, "holds no line")
    return sum(seconds) / len(seconds)


def _document(path: Path) -> dict[str, Any] | None:
    try:
        document = read_json(path)
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        raise _malformed(path, f"cannot be read ({error})") from None
    if not isinstance(document, dict):
        raise _malformed(path, f"is {type(document).__name__}, not an object")
    return document


def _seconds(value: Any, path: Path) -> float:
    try:
        seconds = float(value)
    except (TypeError, ValueError):
        raise _malformed(path, f"gives {value!r} for its seconds") from None
    if not math.isfinite(seconds) or seconds < 0:
        raise _malformed(path, f"gives {value!r} for its seconds")
    return seconds


def _malformed(path: Path, found: str) -> DataError:
    if path.name == "done.json":  # says more than hours: without it the training is unfinished
        remedy = "Restore it from a copy; without it the training counts as unfinished and snakemake runs it again."
    else:
        remedy = "Delete it: nothing but hours rests on it."
    return DataError(f"{path}: {found}; expected what a finished job took. {remedy}")
