"""A wrong class order shows at once, and is named where it is a known one; with real Lite0 labels."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from tests.conftest import machine_settings, write_manifests
from tests.unit.annotate.test_annotate import SPEC
from tokenlabel.annotate.check import check_class_order
from tokenlabel.annotate.shard_job import annotate_shard
from tokenlabel.cli import main
from tokenlabel.core.errors import LabelError
from tokenlabel.core.files import read_json, write_json
from tokenlabel.data.manifest import Manifest, load_manifest
from tokenlabel.labels import LabelStore
from tokenlabel.labels.class_order import other_orders, ranks_that_tell

OWN = np.arange(1000)


@pytest.fixture(scope="module")
def study(photographs: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Lite0's labels of the demo's training photographs, and their manifest."""
    place = tmp_path_factory.mktemp("check")
    machine = machine_settings(photographs)
    manifest = write_manifests(place / "manifest", machine)["train"]
    annotate_shard(SPEC, machine, manifest, 0, place / "labels" / "train-00000-of-00001.done")
    return place


def as_if_labels_in(manifest: Manifest, order: NDArray[np.int64]) -> Manifest:
    """The manifest for which the stored labels are in another order: class c of the manifest has number order[c]."""
    class_index = np.argsort(order)[manifest.class_index].astype(np.int32)
    return dataclasses.replace(manifest, class_index=class_index)


def check(study: Path, order: NDArray[np.int64] = OWN, classes: tuple[str, ...] | None = None):
    manifest = load_manifest(study / "manifest", "train")
    manifest = dataclasses.replace(manifest, classes=classes or manifest.classes)
    return check_class_order(LabelStore(study / "labels", "train"), as_if_labels_in(manifest, order), 5000, 0)


def test_the_right_order_matches(study: Path) -> None:
    found = check(study)
    assert found.matches
    assert found.verdict.startswith("matches")
    assert found.any_cell >= found.pooled > 0.5 > 5 * found.chance


@pytest.mark.parametrize(
    ("order", "hint"),
    [(np.roll(OWN, -1), "one too high"), (np.roll(OWN, 1), "one too low"), (OWN[::-1].copy(), "reversed")],
)
def test_a_shifted_or_reversed_order_is_named(study: Path, order: NDArray[np.int64], hint: str) -> None:
    found = check(study, order)
    assert not found.matches
    assert hint in found.verdict


@pytest.mark.parametrize("made_in", ["natural", "lexicographic"])
def test_the_other_folder_order_is_named(study: Path, made_in: str) -> None:
    numbers = [f"class{number}" for number in range(1000)]
    classes = tuple(sorted(numbers)) if made_in == "natural" else tuple(numbers)
    order = next(mapping for name, mapping in other_orders(classes, 1000).items() if f"in {made_in} order" in name)
    found = check(study, order, classes)
    assert not found.matches
    assert f"in {made_in} order" in found.verdict


def test_a_random_order_is_told_from_wrong_weights(study: Path) -> None:
    found = check(study, np.random.default_rng(1).permutation(1000))
    assert not found.matches
    assert "consistent other number" in found.verdict
    manifest = load_manifest(study / "manifest", "train")
    dealt = dataclasses.replace(manifest, class_index=np.random.default_rng(1).permutation(manifest.class_index))
    found = check_class_order(LabelStore(study / "labels", "train"), dealt, 5000, 0)
    assert not found.matches
    assert "other weights" in found.verdict


def test_classes_beyond_the_annotator_are_refused(study: Path) -> None:
    manifest = load_manifest(study / "manifest", "train")
    beyond = dataclasses.replace(manifest, class_index=manifest.class_index + 1000)
    with pytest.raises(LabelError, match="1000 classes, but the manifest has class"):
        check_class_order(LabelStore(study / "labels", "train"), beyond, 50, 0)


def test_the_command_says_so_by_its_exit_code(study: Path) -> None:
    words = ["annotate", "check", str(study / "labels"), "--manifest"]
    assert main([*words, str(study / "manifest"), "--classes-only"]) == 0
    wrong = as_if_labels_in(load_manifest(study / "manifest", "train"), np.roll(OWN, 1))
    other = study / "other"
    other.mkdir()
    write_json(other / "manifest.done", read_json(study / "manifest" / "manifest.done"))
    with np.load(study / "manifest" / "train.npz") as arrays:
        np.savez(other / "train.npz", **{**arrays, "class_index": wrong.class_index})
    assert main([*words, str(other), "--classes-only"]) == 1


def test_two_exchanged_classes_are_named(study: Path) -> None:
    manifest = load_manifest(study / "manifest", "train")
    first, second = np.unique(manifest.class_index)[:2].tolist()
    order = OWN.copy()
    order[[first, second]] = second, first
    found = check(study, order)
    assert not found.matches
    assert "2 classes are hardly ever" in found.verdict
    assert manifest.classes[first] in found.verdict


def test_ranks_that_tell_something_with_few_classes() -> None:
    assert [ranks_that_tell(classes) for classes in (2, 3, 5, 11, 1000)] == [1, 1, 2, 5, 5]
