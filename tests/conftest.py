"""Fixtures that every kind of test shares: the raw study configuration, and small sets of real photographs."""

from __future__ import annotations

import copy
import functools
import os
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from filelock import FileLock
from xdist.scheduler import LoadFileScheduling

REPOSITORY = Path(__file__).resolve().parents[1]

# worker processes share two cores; one thread each is faster than four that wait for each other
os.environ.setdefault("OMP_NUM_THREADS", "1")


@pytest.fixture(scope="session")
def repository() -> Path:
    return REPOSITORY


@pytest.fixture(scope="session")
def _raw_config() -> dict[str, Any]:
    return yaml.safe_load((REPOSITORY / "config.yaml").read_text(encoding="utf-8"))


@pytest.fixture
def raw_config(_raw_config: dict[str, Any]) -> dict[str, Any]:
    """config.yaml as a dictionary that a test may change."""
    return copy.deepcopy(_raw_config)


def machine_settings(data_root: Path, **changes: Any) -> dict[str, Any]:
    """machine.json of a small job on the CPU of this machine, photographs in data_root/train and data_root/val."""
    settings = {
        "data_root": str(data_root), "weights_root": "", "timm_names": [], "device": "cpu", "precision": "float32",
        "threads": 1, "workers": 0, "annotate_batch": 12, "annotate_compile": False, "micro_batch": 12,
        "validate_every_epochs": 0, "validation_crop": 0.9, "channels_last": False, "min_label_coverage": 1.0,
        "log_every_steps": 1, "tensorboard": False, "speed_seconds": 0.0, "real_labels": None, "test_sets": {},
        "dataset": {"format": "folder", "train": "train", "val": "val", "on_unreadable": "record", "max_unreadable_fraction": 0.5},
    }  # fmt: skip
    return _default_machine() | settings | changes


@functools.cache
def _default_machine() -> dict[str, Any]:
    """The machine settings of config.yaml: it has every key, so that none is listed twice."""
    raw: dict[str, Any] = yaml.safe_load((REPOSITORY / "config.yaml").read_text(encoding="utf-8"))["machine"]
    return raw


def write_manifests(folder: Path, machine: dict[str, Any]) -> dict[str, Any]:
    """Lists ImageNet-named class folders in one shard, as the manifest job does; returns split -> manifest."""
    from tokenlabel.core.files import write_json
    from tokenlabel.data.manifest import build_manifests, save_manifests

    spec = {
        "class_map": "imagenet-1k",
        "num_classes": 1000,
        "val_fraction": None,
        "val_seed": 0,
        "images": None,
        "shards": 1,
    }
    manifests = build_manifests(spec, machine)
    write_json(folder / "manifest.done", save_manifests(folder, manifests))
    return manifests


def made_once(factory: pytest.TempPathFactory, name: str, make: Callable[[Path], object]) -> Path:
    """A folder that the first test process which needs it makes, for all of them."""
    base = factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        base = base.parent
    folder = base / name
    with FileLock(f"{folder}.lock"):
        if not folder.exists():
            begun = folder.with_name(f"{name}.begun-{os.getpid()}")
            begun.mkdir()
            make(begun)
            begun.rename(folder)
    return folder


@pytest.fixture(scope="session")
def photographs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with train/ and val/ of the demo's 160 crops of real photographs."""
    from tokenlabel.demo.photographs import write_crops

    return made_once(tmp_path_factory, "photographs", write_crops)


@pytest.hookimpl(tryfirst=True)  # before pytest looks which marks are asked for
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Leaves samples to `make test`, and starts the longest files first, so that no worker is left with one of them at the end."""
    _leave_samples(items)
    slow = ("tests/workflow/test_study.py", "tests/slurm/", "tests/workflow/")
    items.sort(
        key=lambda item: next((rank for rank, start in enumerate(slow) if item.nodeid.startswith(start)), len(slow))
    )


def _leave_samples(items: list[pytest.Item]) -> None:
    """Marks as the campaign's what the mark `sampled` leaves out."""
    seen: Counter[str] = Counter()
    for item in items:
        sampled = item.get_closest_marker("sampled")
        if sampled:
            name = item.nodeid.partition("[")[0]
            if seen[name] % sampled.args[0]:
                item.add_marker(pytest.mark.campaign)
            seen[name] += 1


class FileScheduling(LoadFileScheduling):  # type: ignore[misc]  # xdist has no types
    """A file's tests run in one worker, and all of tests/slurm in the same: they share the machine's one cluster.

    xdist's own groups (`--dist loadgroup`) do nothing with pytest 9.2: it renames tests to tell their group, and no name changes.
    """

    def _split_scope(self, nodeid: str) -> str:
        return "tests/slurm" if nodeid.startswith("tests/slurm/") else str(super()._split_scope(nodeid))


def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> FileScheduling:
    """Called by xdist where tests run in several workers."""
    return FileScheduling(config, log)
