"""What jobs that ran have cost, from the benchmark files that Snakemake wrote. Read by tables and by the plan; writes nothing."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from pathlib import Path


def gpu_hours(base: Path, runs: Sequence[str], seed: int, gpus: int = 1) -> float | None:
    """GPU hours of one seed of a chain of runs.

    Args:
        base: folder that holds benchmarks/.
        runs: folder names under results/runs, as in a table plan's `chain`.
        seed: of all of them.
        gpus: that each job held.

    Returns:
        Hours, or None where a run has no benchmark file (run by hand, or not finished).
    """
    seconds = [_seconds(base / "benchmarks/runs" / run / f"seed{seed}") for run in runs]
    if not seconds or None in seconds:
        return None
    return gpus * sum(filter(None, seconds)) / 3600


def _seconds(folder: Path) -> float | None:
    """Seconds of all jobs of one run: its legs and the one that finished it."""
    if not (folder / "train.tsv").exists():
        return None
    found = 0.0
    for path in (*folder.glob("leg-*.tsv"), folder / "train.tsv"):
        with path.open(encoding="utf-8") as file:
            found += sum(float(row["s"]) for row in csv.DictReader(file, delimiter="\t"))
    return found
