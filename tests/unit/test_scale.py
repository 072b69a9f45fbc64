"""What grows with photographs, shards and experiments does so in a straight line: counted, or compared by times, generously."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pytest

from bench.dag import enlarged
from bench.scale import PARTS, label_shards
from tokenlabel.core import cost, identity, staleness, study
from tokenlabel.core.overlays import read_configuration
from tokenlabel.core.plan import plan_study
from tokenlabel.core.plan_jobs import JobList
from tokenlabel.core.study import Study
from tokenlabel.data import manifest as manifests
from tokenlabel.data.listing import Entry
from tokenlabel.labels import LabelStore, store

REPOSITORY = Path(__file__).resolve().parents[2]
LOOSE = 2.5  # times the straight line; something of the second power is four or ten times


def overlay_of(times: int) -> dict[str, Any]:
    """A few of the study's tables, so many times, with three seeds."""
    config = read_configuration([REPOSITORY / "config.yaml"])
    config["select"]["experiments"] = ["main", "ablation_supervision", "ablation_annotators"]
    more = enlarged(config, times)
    config["experiments"] = {
        name: {**config["experiments"].get(name, {}), **entry} for name, entry in more["experiments"].items()
    }
    config["select"]["experiments"] = more["select"]["experiments"]
    return config


def least_s(work: Callable[..., object], *arguments: object) -> float:
    """Processor seconds of the fastest of three."""
    found = []
    for _ in range(3):
        started = time.process_time()
        work(*arguments)
        found.append(time.process_time() - started)
    return min(found)


def entries(count: int) -> list[Entry]:
    return [
        Entry(f"n{number % 100:08d}/{number:08d}.JPEG", 1000, -1, 0, f"n{number % 100:08d}") for number in range(count)
    ]


def test_the_manifests_time_is_that_of_its_photographs() -> None:
    classes = [f"n{number:08d}" for number in range(100)]
    taken = {count: least_s(manifests.manifest_of_entries, entries(count), classes) for count in (5_000, 50_000)}
    assert taken[50_000] < LOOSE * 10 * taken[5_000], taken


def test_a_plan_resolves_each_run_once() -> None:
    digests = {}
    for times in (1, 4):
        with mock.patch.object(study, "digest_of", side_effect=identity.digest_of) as counted:
            planned = Study.plan(overlay_of(times))
        digests[times] = counted.call_count / len(planned.runs)
    assert digests[4] < 1.3 * digests[1], digests


def test_prices_grow_with_the_jobs(tmp_path: Path) -> None:
    taken = {}
    for times in (1, 4):
        planned = Study.plan(overlay_of(times))
        taken[times] = least_s(plan_study, planned, tmp_path) / len(planned.runs)
    assert taken[4] < LOOSE * taken[1], taken


def test_shards_are_listed_once_for_all_runs() -> None:
    config = overlay_of(1)
    config["labels"]["shards"] = 640
    planned = Study.plan(config)
    jobs = JobList(planned)
    with mock.patch.object(JobList, "_add", autospec=True, side_effect=JobList._add) as added:
        for table in planned.selected_tables:
            jobs.add_table(table)
    shards = 640 * len(planned.used_labels)
    others = len(jobs.jobs) - shards
    assert shards <= added.call_count < shards + 5 * others


def test_opening_a_store_reads_each_shard_once_and_keeps_few_bytes_a_photograph(tmp_path: Path) -> None:
    from docs.scale_tables import STORE_BYTES

    ids = label_shards(tmp_path, 5, 400)
    with mock.patch.object(store, "ShardFile", side_effect=store.ShardFile) as opened:
        labels = LabelStore(tmp_path, "train")
    assert opened.call_count == 5
    kept = [value for value in vars(labels).values() if isinstance(value, np.ndarray)]
    assert sum(value.nbytes for value in kept) <= STORE_BYTES * len(ids) + 64


def test_a_look_for_stale_shards_reads_each_marker_once(tmp_path: Path) -> None:
    count, work = PARTS["labels: look for stale shards"][1](2, tmp_path)
    with mock.patch.object(staleness, "read_json", side_effect=staleness.read_json) as read:
        assert work() == []
    assert read.call_count == count


def test_the_manifests_job_asks_for_memory_by_its_photographs() -> None:
    assert cost.manifest_mem_mb(50_000) < 4_100
    assert 8_000 < cost.manifest_mem_mb(14_000_000) < 16_000


@pytest.mark.parametrize(
    "part", [part for part in PARTS if part.startswith(("manifest: b", "training", "report: p", "status"))]
)
def test_every_part_can_be_measured(part: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("bench.scale.PHOTOGRAPHS", 2_000)
    monkeypatch.setattr("bench.scale.SHARDS", 3)
    count, work = PARTS[part][1](1, tmp_path)
    assert count
    work()


def test_the_study_of_imagenet21k_can_be_planned() -> None:
    planned = Study.plan(
        read_configuration([REPOSITORY / "config.yaml", REPOSITORY / "examples/imagenet21k/config.yaml"])
    )
    assert planned.config.dataset.num_classes == 21_841
    assert planned.train_images + planned.config.dataset.val_images == 14_197_122
    (row,) = [row for row in plan_study(planned, Path("/nowhere")).rows if row.target == "total"]
    assert row.jobs > 3 * 704
