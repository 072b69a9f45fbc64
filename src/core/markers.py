"""Markers of finished work that is expensive to repeat, in two copies: the one that Snakemake knows, and one that it does not.

Snakemake removes the declared outputs of a job that it takes for failed, and of a job that it runs again, before the job's own
code starts. So a node that dies just after a marker was written, or a second job for the same output, would cost a finished
training. The kept copy brings the marker back. Called by the shard job and by trainings.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from .files import read_json, write_json


def kept_copy(marker: Path) -> Path:
    """The copy beside a marker."""
    return marker.with_name(f"{marker.name}.kept")


def write_marker(marker: Path, document: dict[str, Any]) -> None:
    """Writes the copy, then the marker.

    Raises:
        OutputError: the folder cannot be written.
    """
    write_json(kept_copy(marker), document)
    write_json(marker, document)


def read_kept(marker: Path) -> dict[str, Any] | None:
    """What the copy says; None without a whole one. Whether it is still true is for the caller to check."""
    try:
        document = read_json(kept_copy(marker))
    except (OSError, ValueError):
        return None
    return document if isinstance(document, dict) else None
