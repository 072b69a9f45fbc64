"""Photographs that could not be read: when there are too many of them, and the table that lists them all.

Used by `shard_job`. Training skips them; a broken disk must not pass for a data set with holes.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..core.errors import DataError
from ..core.files import Lease, read_json, write_text
from ..core.log import logger

ALWAYS_ALLOWED = 10  # of a shard, but never more than a quarter of it: a small folder may have its few broken files


@dataclass(frozen=True)
class Unreadable:
    """A photograph's path relative to its split's root, and why it could not be read."""

    path: str
    reason: str


class UnreadableList:
    """The unreadable photographs of one shard.

    Args:
        dataset: machine.json's section, with on_unreadable and max_unreadable_fraction.
        where: names the shard in errors.
        shard_images: photographs of the shard.
    """

    def __init__(self, dataset: dict[str, Any], where: str, shard_images: int) -> None:
        self.found: list[Unreadable] = []
        self.shard_images = shard_images
        self._where, self._on_unreadable = where, dataset["on_unreadable"]
        self._fraction = dataset["max_unreadable_fraction"]

    def add(self, paths: Sequence[str], reasons: Sequence[str]) -> int:
        """Notes those of a batch that have a reason; returns how many.

        Raises:
            DataError: one is too many for `on_unreadable: fail`, or there are more than `max_unreadable_fraction`.
        """
        new = [Unreadable(path, reason) for path, reason in zip(paths, reasons, strict=True) if reason]
        for photograph in new:
            if self._on_unreadable == "fail":
                raise DataError(
                    f"{photograph.path}: cannot be decoded ({photograph.reason}). Replace the photograph, or set "
                    "dataset.on_unreadable: record."
                )
            logger.warning(
                "%s: cannot be decoded (%s); recorded in the shard, training skips it",
                photograph.path,
                photograph.reason,
            )
        self.found += new
        few = min(ALWAYS_ALLOWED, -(-self.shard_images // 4))
        limit = max(few, int(self._fraction * self.shard_images))
        if len(self.found) > limit:
            first = "; ".join(f"{photograph.path} ({photograph.reason})" for photograph in self.found[:3])
            raise DataError(
                f"{self._where}: {len(self.found)} of {self.shard_images:,} photographs cannot be read, more than the {limit} "
                f"that dataset.max_unreadable_fraction {self._fraction:g} allows ({few} in any case); first: {first}. "
                "Check the disk, or raise the fraction."
            )
        return len(new)

    def write_table(self, table: Path, shard: int, done: Path, write_marker: Callable[[], None]) -> None:
        """Writes the marker, and anew the table of its split's unreadable photographs, of all finished shards, beside it.

        Both under one lease, so that of two shards that finish together neither is missing.
        """
        with Lease(table.with_suffix(".lease")):
            lines = {shard: self.found}
            for marker in table.parent.glob(f"{done.stem.rsplit('-', 3)[0]}-*-of-*.done"):
                if marker != done:
                    listed = read_json(marker).get("unreadable_photographs", [])
                    lines[int(marker.stem.split("-")[-3])] = [Unreadable(**photograph) for photograph in listed]
            out = io.StringIO()
            writer = csv.writer(out, lineterminator="\n")
            writer.writerow(["path", "shard", "reason"])
            for number in sorted(lines):
                writer.writerows([photograph.path, number, photograph.reason] for photograph in lines[number])
            write_text(table, out.getvalue())
            write_marker()
