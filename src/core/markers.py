"""Markers of finished work that is expensive to repeat, in two copies: the one that Snakemake knows, and one that it does not.

Snakemake removes the declared outputs of a job that it takes for failed, and of a job that it runs again, before the job's own
code starts. So a node that dies just after a marker was written, or a second job for the same output, would cost a finished
training. The kept copy brings the marker back. Called by the shard job and by trainings;
`forget_begun` by the rules.
"""

from __future__ import annotations

import base64
import contextlib
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


def legs_of_finished(marker: Path) -> int:
    """In how many legs a finished run was trained, by its marker or, where that is damaged, by the copy; 1 where neither says."""
    for path in (marker, kept_copy(marker)):
        with contextlib.suppress(OSError, ValueError, AttributeError):
            legs = read_json(path).get("legs", 1)
            if isinstance(legs, int) and legs >= 1:
                return legs
    return 1


def forget_begun(records: Path, study: Path) -> None:
    """Removes Snakemake's record that a job was begun, where the job's marker is there: a marker is written last and whole.

    A Snakemake that was killed leaves such records of jobs that went on and finished. It would run them again, and, because their
    markers are `ancient` inputs, nothing of what still waits for them: the call would end well and have made no table.

    Args:
        records: `.snakemake/incomplete`; a record's name is its output's path in base64, long ones cut into folders `@...`.
        study: folder that the outputs' paths are relative to.
    """
    for record in records.rglob("*"):
        name = "".join(part.removeprefix("@") for part in record.relative_to(records).parts)
        try:
            output = base64.urlsafe_b64decode(name).decode()
        except ValueError:  # a folder, or nothing of Snakemake's
            continue
        if output.startswith("results/") and output.endswith((".done", "/done.json")) and (study / output).is_file():
            with contextlib.suppress(
                OSError
            ):  # of a user who is not in the group: Snakemake says what it makes of the record
                record.unlink()
