"""Which finished label shards are of other photographs than the manifest's; no torch, only markers are read.

Asked by the planner at every parse, which then plans those shards again, and by `tokenlabel refresh`, which names them.
A stale marker stays until the new shard's replaces it: Snakemake would train finished runs again whose inputs are missing.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path

from .files import read_json

_MARKER = re.compile(r"(\w+)-(\d{5})-of-(\d{5})\.done")


def stale_shards(labels: Path, digests: Mapping[str, Sequence[str]]) -> list[Path]:
    """Markers of shards that no longer fit, sorted; those of another number of shards or without a digest are left out.

    Args:
        labels: folder of an annotator's shards.
        digests: split -> the manifest's digest of each shard.
    """
    stale = []
    for marker in sorted(labels.glob("*.done")):
        name = _MARKER.fullmatch(marker.name)
        expected = digests.get(name[1], ()) if name else ()
        if name is None or int(name[3]) != len(expected):
            continue
        try:
            found = read_json(marker).get("manifest_digest")
        except (OSError, ValueError, AttributeError):  # another job is at it, or it is none of ours
            continue
        if found is not None and found != expected[int(name[2])]:
            stale.append(marker)
    return stale
