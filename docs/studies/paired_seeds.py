"""What the records of studies share: runs of arms paired by seed, the interval of their differences, and the CSV.

Used by record_camvid.py and record_tinyimagenet20.py.
"""

from __future__ import annotations

import csv
import statistics
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from scipy.stats import t as student_t

Row = dict[str, Any]
FEWEST = 3  # pairs: an interval over two seeds says nothing


def by_arm(rows: Iterable[Row]) -> dict[str, dict[int, Row]]:
    """Arm -> seed -> its run."""
    arms: dict[str, dict[int, Row]] = {}
    for row in rows:
        arms.setdefault(row["arm"], {})[row["seed"]] = row
    return arms


def pair_up(arms: dict[str, dict[int, Row]], one: str, other: str) -> list[tuple[Row, Row]]:
    """Runs of two arms, seed by seed, where both have one; none where they share fewer than FEWEST."""
    seeds = sorted(arms.get(one, {}).keys() & arms.get(other, {}).keys())
    return [(arms[one][seed], arms[other][seed]) for seed in seeds] if len(seeds) >= FEWEST else []


def t_reach(values: list[float]) -> float:
    """Half of the 95 % interval of the mean, by Student's t."""
    count = len(values)
    return float(student_t.ppf(0.975, count - 1)) * statistics.stdev(values) / count**0.5


def deviation(values: list[float]) -> float | None:
    """Standard deviation; None of a single value."""
    return statistics.stdev(values) if len(values) > 1 else None


def write_rows(path: Path, rows: list[Row]) -> None:
    """Writes the record: columns are the first row's."""
    with open(path, "w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
