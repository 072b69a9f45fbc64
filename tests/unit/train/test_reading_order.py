"""Orders of reading: every photograph once, by the seed alone, sequential ones in long runs of an archive."""

from __future__ import annotations

import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.conftest import machine_settings, write_manifests
from tokenlabel.data.manifest import Manifest
from tokenlabel.train.reading_order import RUN, ReadingOrder


def manifest_of(count: int, archives: int) -> Manifest:
    """Photographs of 100 bytes that lie in tar files in another order than their paths."""
    rng = np.random.default_rng(count)
    place = rng.permutation(count)
    return Manifest(
        split="train", source="train", sample_id=np.arange(count, dtype=np.uint64), class_index=np.zeros(count, np.int32),
        size_bytes=np.full(count, 100), offset=place * 612, path_bytes=np.empty(0, np.uint8),
        path_ends=np.zeros(count, np.int64), classes=("a",), shard_digests=("d",),
        archive=(place * archives // max(count, 1)).astype(np.int32), group_id=np.arange(count, dtype=np.uint64),
    )  # fmt: skip


def order_of(manifest: Manifest, read_order: str, buffer: int, seed: int = 0, rows: Any = None) -> ReadingOrder:
    rows = np.arange(len(manifest)) if rows is None else rows
    return ReadingOrder(manifest, rows, {"read_order": read_order, "shuffle_buffer": buffer}, seed)


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 1500), st.integers(1, 3), st.integers(1, 1000), st.sampled_from(["shuffled", "sequential"]))
def test_every_photograph_once_in_an_order_of_seed_and_epoch(
    count: int, archives: int, buffer: int, read_order: str
) -> None:
    manifest = manifest_of(count, archives)
    rows = np.flatnonzero(np.arange(count) % 7 != 3) if count > 4 else np.arange(count)
    order = order_of(manifest, read_order, buffer, rows=rows)
    first = order(2)
    assert sorted(first.tolist()) == rows.tolist()
    assert (first == order_of(manifest, read_order, buffer, rows=rows)(2)).all()
    if count > 50:
        assert (first != order(3)).any()
        assert (first != order_of(manifest, read_order, buffer, seed=1, rows=rows)(2)).any()


def test_a_buffer_holds_whole_runs_and_mixes_them() -> None:
    manifest = manifest_of(40 * RUN, 4)
    order = order_of(manifest, "sequential", 10 * RUN)(0)
    stored = np.lexsort((manifest.offset, manifest.archive))
    place = np.empty(len(stored), np.int64)
    place[stored] = np.arange(len(stored))
    for buffer in np.split(place[order], 4):
        runs, counts = np.unique(buffer // RUN, return_counts=True)
        assert len(runs) == 10
        assert (counts == RUN).all()
        neighbours = np.abs(np.diff(buffer)) == 1
        assert neighbours.mean() < 0.05  # shuffled inside
        assert np.ptp(runs) > 20  # from all over the archives, so that sorted classes mix


def test_spans_cover_the_bytes_of_a_buffer_and_few_others() -> None:
    manifest = manifest_of(5 * RUN + 17, 2)
    order = order_of(manifest, "sequential", 2 * RUN)
    lengths = [sum(17 if run == 5 else RUN for run in runs.tolist()) for runs in order.buffers(1)]
    for runs, rows in zip(order.buffers(1), np.split(order(1), np.cumsum(lengths)[:-1]), strict=True):
        spans = order.spans(runs)
        assert len(spans) <= len(runs) + 1  # a run that goes on in the next archive is two
        for row in rows.tolist():
            start, end = manifest.offset[row], manifest.offset[row] + manifest.size_bytes[row]
            assert any(a == manifest.archive[row] and s <= start and end <= s + n for a, s, n in spans)
        assert sum(length for *_, length in spans) <= 612 * len(rows)


@pytest.fixture
def tar_place(photographs: Path, tmp_path: Path) -> tuple[Manifest, dict[str, Any]]:
    for split in ("train", "val"):
        with tarfile.open(tmp_path / f"{split}.tar", "w") as archive:
            for path in sorted((photographs / split).rglob("*.jpg"), reverse=True):
                archive.add(path, path.relative_to(photographs / split).as_posix())
    dataset = {"format": "tar", "train": "train.tar", "val": "val.tar", "on_unreadable": "record"}
    machine = machine_settings(tmp_path, dataset={**dataset, "max_unreadable_fraction": 0.5})
    return write_manifests(tmp_path / "manifest", machine)["train"], machine


def test_reading_ahead_asks_for_this_buffer_and_the_next_once(tar_place: tuple[Manifest, dict[str, Any]]) -> None:
    manifest, machine = tar_place
    order = order_of(manifest, "sequential", 1)  # one run a buffer
    source = manifest.open_source(machine)
    asked: list[Any] = []
    source.will_read = asked.append  # type: ignore[method-assign]  # what reaches the kernel is tested below
    rows = order(0)
    for row in rows[:3].tolist():
        order.read_ahead(source, 0, row)
    assert len(order.buffers(0)) == 1 + (len(manifest) > RUN)
    assert len(asked) == 1
    order.read_ahead(source, 1, int(rows[0]))
    assert len(asked) == 2


def test_what_the_kernel_is_asked_for_changes_no_byte(tar_place: tuple[Manifest, dict[str, Any]]) -> None:
    manifest, machine = tar_place
    order = order_of(manifest, "sequential", 10_000)
    source = manifest.open_source(machine)
    source.will_read(order.spans(order.buffers(0)[0]))
    source.will_read([(0, 10**12, 5)])  # behind the end: nothing happens
    for row in order(0)[:5].tolist():
        assert manifest.read(source, row)[:2] == b"\xff\xd8"
