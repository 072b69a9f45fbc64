"""A line of metrics.jsonl, read and checked: for the training that goes on with it, for curves and for the status. No torch."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

from .errors import DataError
from .files import parse_json


def parse_metrics_line(text: str, where: Path) -> dict[str, float]:
    """One line; null is nan.

    Args:
        text: of the line.
        where: the file, for the error.

    Raises:
        ValueError: it is no JSON: cut off by a kill, or being written.
        DataError: it is JSON, but nothing that a training writes.
    """
    line = parse_json(text)
    if not isinstance(line, dict) or not _is_training_line(line):
        raise DataError(
            f"{where}: {text[:60]!r} is no line of a training, which is an object of numbers and says its epoch. Remove that line."
        )
    return {name: math.nan if value is None else value for name, value in line.items()}


def _is_training_line(line: dict[str, Any]) -> bool:
    counts = [line.get("epoch"), line.get("step", 0)]
    return all(isinstance(count, int) and count >= 0 for count in counts) and all(
        value is None or (isinstance(value, (int, float)) and not isinstance(value, bool)) for value in line.values()
    )
