"""Inspects and verifies label shards: what they say about themselves, and whether every byte is as it was written."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path

from ..core.errors import LabelError
from .shards import (
    ShardAttributes,
    ShardSummary,
    marker_path,
    read_attributes,
    read_marker,
    read_statuses,
    verify_shard,
)
from .store import missing_shards, shards_in


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the arguments of `tokenlabel labels`."""
    parser.add_argument("action", choices=("inspect", "verify"), help="print attributes and counts, or check every row")
    parser.add_argument("paths", type=Path, nargs="+", metavar="FILE_OR_FOLDER", help="shards, or folders of shards")


def run(args: argparse.Namespace) -> int:
    """Prints what was asked for; verify returns 1 if any shard is bad."""
    if args.action == "inspect":
        return inspect_shards(args.paths)
    return verify_shards(args.paths)


def inspect_shards(paths: Sequence[Path]) -> int:
    """Prints, per folder and split, the attributes that all shards share, then one line per shard.

    Raises:
        LabelError: a shard cannot be read.
    """
    for position, group in enumerate(_grouped(paths)):
        attributes = [read_attributes(path) for path in group]
        if position:
            _say("")
        _say(str(group[0].parent))
        shared = [field.name for field in fields(ShardAttributes) if _agree(attributes, field.name)]
        _say_table([[name, str(getattr(attributes[0], name))] for name in shared])
        own = [field.name for field in fields(ShardAttributes) if field.name not in shared and field.name != "shard"]
        header = ["file", "images", "ok", "unreadable", "pending", "size_bytes", *own]
        lines = [header]
        for path, said in zip(group, attributes, strict=True):
            counts = read_statuses(path)
            numbers = (counts.images, counts.ok, counts.unreadable, counts.pending, counts.size_bytes)
            lines.append([path.name, *map(str, numbers), *(str(getattr(said, name)) for name in own)])
        _say_table(lines)
    return 0


def verify_shards(paths: Sequence[Path]) -> int:
    """Checks shards and prints one line each; goes on after a bad one.

    Returns:
        1 if any shard is bad or missing, else 0.
    """
    bad = 0
    for path in paths:
        try:
            shards, absent = _with_missing(path)
        except LabelError as error:
            _say(f"BAD  {error}")
            bad += 1
            continue
        for shard in shards:
            try:
                _say(f"ok   {_verified(shard)}")
            except LabelError as error:
                _say(f"BAD  {error}")
                bad += 1
        for shard in absent:
            _say(f"BAD  shard {shard}: missing. Run snakemake labels.")
            bad += 1
    return 1 if bad else 0


def _verified(shard: Path) -> str:
    has_marker = marker_path(shard).exists()
    summary = verify_shard(shard, read_marker(shard)["sha256"] if has_marker else None)
    return f"{shard}: {_counted(summary)}, {'sha256 as in its marker' if has_marker else 'no marker to compare with'}"


def _counted(summary: ShardSummary) -> str:
    pending = f", {summary.pending} pending" if summary.pending else ""
    return f"{summary.images} images, {summary.unreadable} unreadable{pending}, {summary.size_bytes} bytes"


def _with_missing(path: Path) -> tuple[list[Path], list[Path]]:
    """Shards that a path means, and those of a folder that should be there and are not."""
    if not path.is_dir():
        return [path], []
    groups = shards_in(path)
    if not groups:
        raise LabelError(f"labels {path}: no shards there. Run snakemake labels, or correct the path.")
    absent = [shard for group in groups.values() for shard in missing_shards(group)]
    return [shard for group in groups.values() for shard in group], absent


def _grouped(paths: Sequence[Path]) -> list[list[Path]]:
    """Files of one folder and split together, in the order given."""
    groups: dict[tuple[Path, str], list[Path]] = {}
    for path in paths:
        for shard in _with_missing(path)[0]:
            split = shard.name.rsplit("-of-", 1)[0].rsplit("-", 1)[0]
            groups.setdefault((shard.parent, split), []).append(shard)
    return list(groups.values())


def _agree(attributes: Sequence[ShardAttributes], name: str) -> bool:
    if name == "shard":
        return False
    return all(getattr(one, name) == getattr(attributes[0], name) for one in attributes)


def _say_table(lines: Sequence[Sequence[str]]) -> None:
    widths = [max(len(line[column]) for line in lines) for column in range(len(lines[0]))]
    for line in lines:
        cells = (cell.ljust(width) for cell, width in zip(line, widths, strict=True))
        _say(f"  {'  '.join(cells)}".rstrip())


def _say(line: str) -> None:
    print(line)  # noqa: T201
