"""Adapted annotators: real features, a head for one's own classes, folds that do not leak, a checkpoint that timm loads."""

from __future__ import annotations

import dataclasses
import json
import shutil
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from safetensors.torch import load_file

from tests.conftest import machine_settings
from tests.unit.annotate.test_annotate import LITE0
from tests.warm import warm_python
from tokenlabel.annotate.adapt import adapt_annotator
from tokenlabel.annotate.dense import Annotator, annotator_section, build_annotator
from tokenlabel.annotate.folds import fold_of, folds_of_rows
from tokenlabel.annotate.probe import choose_penalty, fit_head, measure
from tokenlabel.annotate.shard_job import annotate_shard
from tokenlabel.core.errors import CheckpointError, ConfigError, DataError
from tokenlabel.core.files import write_json
from tokenlabel.data.manifest import Manifest, build_manifests, save_manifests
from tokenlabel.labels import LabelStore
from tokenlabel.models import read_metadata

CLASSES = ("bird", "dog", "roof")
PX = 160


def blobs(count: int, classes: int, features: int, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    centres = torch.randn(classes, features, generator=torch.Generator().manual_seed(99))
    targets = torch.arange(count) % classes
    return centres[targets] + 2 * torch.randn(count, features, generator=generator), targets


def test_a_head_learns_and_its_scaling_is_folded_back() -> None:
    features, classes = blobs(400, 4, 30)
    scaled = features * torch.logspace(-3, 3, 30) + 5
    unseen, truth = blobs(400, 4, 30, seed=1)
    head, same = fit_head(features, classes, 4, 0.1), fit_head(scaled, classes, 4, 0.1)
    accuracy = (head(unseen).argmax(1) == truth).float().mean()
    assert accuracy > 0.8
    torch.testing.assert_close(same(unseen * torch.logspace(-3, 3, 30) + 5), head(unseen), atol=0.05, rtol=0.05)


def test_the_penalty_is_chosen_by_held_out_loss() -> None:
    features, classes = blobs(60, 3, 200)
    fold = torch.arange(60) % 3
    chosen, losses = choose_penalty(features, classes, 3, fold)
    assert losses[chosen] == min(losses.values())
    assert max(losses.values()) > 1.01 * min(losses.values())


def test_calibration_finds_the_temperature() -> None:
    generator = torch.Generator().manual_seed(0)
    logits = 2 * torch.randn(20000, 5, generator=generator)
    classes = torch.multinomial(logits.softmax(-1), 1, generator=generator)[:, 0]  # as sure as it should be
    measured = measure(3 * logits, classes)
    assert measured.temperature == pytest.approx(3, rel=0.05)
    assert measured.ece > 5 * measured.ece_calibrated
    assert measured.nll > measured.nll_calibrated


def test_a_class_without_photographs_in_a_fold_does_no_harm() -> None:
    features, classes = blobs(30, 3, 10)
    keep = classes != 2
    head = fit_head(features[keep], classes[keep], 3, 0.1)
    assert head(features).isfinite().all()
    assert not (head(features[keep]).argmax(1) == 2).any()


@pytest.fixture(scope="module")
def folder(photographs: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Crops of three demo photographs under class names of one's own."""
    root = tmp_path_factory.mktemp("own")
    sources = sorted((photographs / "train").iterdir())
    for name, source in zip(CLASSES, (sources[0], sources[4], sources[9]), strict=True):
        for crop in (*source.glob("*.jpg"), *(photographs / "val" / source.name).glob("*.jpg")):
            (root / "data" / name).mkdir(parents=True, exist_ok=True)
            shutil.copy(crop, root / "data" / name)
    return root


def spec_of(folds: int, **changes: Any) -> dict[str, Any]:
    section = LITE0 | {"num_classes": 3}
    return {
        "stage": "adapt", "version": 1, "dataset": {"num_classes": 3}, "annotator": section,
        "adaptation": {"base": LITE0, "method": "probe", "folds": folds, "run": None}, "image_px": PX, "view": "squash",
    } | changes  # fmt: skip


def machine_of(root: Path) -> dict[str, Any]:
    machine = machine_settings(root / "data")
    machine["dataset"] |= {"train": ".", "val": None}
    return machine


def manifests_of(root: Path, num_classes: int = 3) -> dict[str, Manifest]:
    data = {"class_map": None, "num_classes": num_classes, "val_fraction": 0.25, "val_seed": 0, "images": None, "shards": 1,
            "near_duplicates": True}  # fmt: skip
    manifests = build_manifests(data, machine_of(root))
    write_json(root / "manifest" / "manifest.done", save_manifests(root / "manifest", manifests))
    return manifests


@pytest.fixture(scope="module")
def adapted(folder: Path) -> dict[str, Any]:
    done = folder / "results" / "annotators" / "mine-00000000" / "adapted.done"
    facts = adapt_annotator(spec_of(3), machine_of(folder), manifests_of(folder), done, None)
    return {"facts": facts, "folder": done.parent}


def test_a_probe_knows_its_own_classes_and_says_how_well(adapted: dict[str, Any]) -> None:
    facts = adapted["facts"]
    assert facts["validation"]["photographs"] == 6
    assert facts["validation"]["top1"] > 80
    assert facts["out_of_fold"]["top1"] > 60
    assert facts["majority_top1"] == pytest.approx(100 / 3)
    metadata = read_metadata(adapted["folder"] / "annotator.safetensors")
    assert json.loads(metadata["classes"]) == list(CLASSES)
    assert json.loads(metadata["adaptation"]) == facts
    assert json.loads(metadata["adaptation"])["validation"]["temperature"] > 0


def test_plain_timm_loads_the_checkpoint(adapted: dict[str, Any], folder: Path) -> None:
    model = timm.create_model("tf_efficientnet_lite0", num_classes=3).eval()
    model.load_state_dict(load_file(adapted["folder"] / "annotator.safetensors"), strict=True)
    section = annotator_section(spec_of(0)["annotator"], PX, adapted["folder"])
    annotator = build_annotator(section, Path())
    images = torch.rand(2, 3, PX, PX)
    with torch.inference_mode():
        torch.testing.assert_close(annotator(images).mean((1, 2)), model(images), rtol=1e-3, atol=1e-4)
    assert annotator.check(images)[0] == "linear"


def test_each_training_photograph_is_labeled_by_a_head_that_has_not_seen_it(
    adapted: dict[str, Any], folder: Path
) -> None:
    """Every head is fitted again by hand without the photograph's fold, and its map compared with the shard's."""
    manifests = manifests_of(folder)
    labels = {
        "image_px": PX, "view": "squash", "k": 3, "tail": False, "precision": "float16", "score_step": 0, "flip": False,
        "scales": [1.0],
    }  # fmt: skip
    spec = {"annotator": spec_of(3)["annotator"] | {"adaptation": spec_of(3)}, "labels": labels}
    done = folder / "labels" / "mine-00000000" / "train-00000-of-00001.done"
    annotate_shard(spec, machine_of(folder), manifests["train"], 0, done, adapted["folder"])
    store = LabelStore(done.parent, "train")
    fold = fold_of(manifests["train"].group_id.tolist(), 3)
    assert len(set(fold.tolist())) > 1
    folds = load_file(adapted["folder"] / "folds.safetensors")
    plain = load_file(adapted["folder"] / "annotator.safetensors")["classifier.weight"]
    differences = []
    for row in range(len(manifests["train"])):
        label = store[int(manifests["train"].sample_id[row])]
        order = np.argsort(label.classes, axis=-1)
        means = np.take_along_axis(label.scores.astype(np.float32), order, -1).mean((0, 1))
        cache = next((folder / "results" / "features").glob("*/train-*.npz"))
        with np.load(cache) as chunk:
            features = chunk["features"][chunk["sample_id"].tolist().index(int(manifests["train"].sample_id[row]))]
        head = int(fold[row])
        own = folds["weight"][head].numpy() @ features + folds["bias"][head].numpy()
        np.testing.assert_allclose(means, own, atol=0.02)
        differences.append(float((folds["weight"][head] - plain).abs().max()))
    assert min(differences) > 1e-4  # the head of all photographs is another one


def test_features_on_disk_are_not_computed_again(
    adapted: dict[str, Any], folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        "tokenlabel.annotate.dense.Annotator.pooled", lambda *_: pytest.fail("a feature was computed again")
    )
    done = folder / "results" / "annotators" / "again-00000000" / "adapted.done"
    facts = adapt_annotator(spec_of(0), machine_of(folder), manifests_of(folder), done, None)
    assert facts["validation"] == adapted["facts"]["validation"]
    assert not (done.parent / "folds.safetensors").exists()


def test_near_duplicates_share_a_fold() -> None:
    assert fold_of([5, 5, 6, 7], 4).tolist()[0] == fold_of([5], 4).tolist()[0]
    assert set(fold_of(range(100), 4).tolist()) == {0, 1, 2, 3}


def test_fold_heads_of_another_annotator_are_refused(adapted: dict[str, Any], tmp_path: Path) -> None:
    shutil.copytree(adapted["folder"], tmp_path / "mine")
    heads = tmp_path / "mine" / "folds.safetensors"
    heads.write_bytes(heads.read_bytes()[:-4] + b"abcd")
    section = annotator_section(spec_of(3)["annotator"] | {"adaptation": spec_of(3)}, PX, tmp_path / "mine")
    with pytest.raises(CheckpointError, match=r"folds\.safetensors: missing, or not the heads"):
        build_annotator(section, Path())


def test_bad_data_sets_are_refused_in_one_line(folder: Path, tmp_path: Path) -> None:
    shutil.copytree(folder / "data" / "dog", tmp_path / "data" / "dog")
    with pytest.raises(ConfigError, match="one class; there is nothing to tell apart"):
        adapt_annotator(spec_of(0), machine_of(tmp_path), manifests_of(tmp_path, 1), tmp_path / "adapted.done", None)
    (tmp_path / "data" / "broken").mkdir()
    for number in range(3):
        (tmp_path / "data" / "broken" / f"{number}.jpg").write_bytes(b"")
    manifests = manifests_of(tmp_path, 2)
    with pytest.raises(DataError, match="class broken: no readable training photograph"):
        adapt_annotator(
            spec_of(0),
            machine_of(tmp_path),
            manifests,
            tmp_path / "results" / "annotators" / "a" / "adapted.done",
            None,
        )


def test_the_command_writes_a_marker_and_an_evaluation(folder: Path) -> None:
    manifests_of(folder)
    place = folder / "results" / "annotators" / "cli-00000000"
    write_json(place / "spec.json", spec_of(0))
    write_json(folder / "machine.json", machine_of(folder))
    write_json(folder / "evaluation.json", {"crop": 1.0, "interpolation": "bicubic", "use_ema": True})

    def run(*arguments: object) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [warm_python(), "-m", "tokenlabel", "annotate", *map(str, arguments), "--machine", folder / "machine.json",
             "--manifest", folder / "manifest"], capture_output=True, text=True, timeout=120, check=False,
        )  # fmt: skip

    finished = run("adapt", "--spec", place / "spec.json", "--done", place / "adapted.done")
    assert finished.returncode == 0, finished.stderr
    assert "top-1" in finished.stderr
    assert json.loads((place / "adapted.done").read_text())["validation"]["top1"] > 80
    finished = run("evaluate", "--spec", folder / "evaluation.json", "--annotator", place, "--out", folder / "e.json")
    assert finished.returncode == 0, finished.stderr
    result = json.loads((folder / "e.json").read_text())
    assert result["top1"] > 80
    assert result["val_images"] == 6
    assert result["parameters_m"] == pytest.approx(3.4, abs=0.2)


def test_renamed_classes_are_refused_by_the_job_that_labels(adapted: dict[str, Any], folder: Path) -> None:
    section = annotator_section(spec_of(3)["annotator"] | {"adaptation": spec_of(3)}, PX, adapted["folder"])
    annotator = build_annotator(section, Path())
    annotator.check_classes(CLASSES)
    with pytest.raises(CheckpointError, match=r"bird, zebra.*Delete its adapted\.done"):
        annotator.check_classes(("dog", "roof", "zebra"))
    with pytest.raises(CheckpointError, match="in another order"):
        annotator.check_classes(("dog", "bird", "roof"))


def test_a_photograph_keeps_its_head_whatever_is_added_later(folder: Path) -> None:
    manifest = manifests_of(folder)["train"]
    before = fold_of(manifest.group_id.tolist(), 3)
    assigned = dict(zip(manifest.sample_id.tolist(), before.tolist(), strict=True))
    renamed = dataclasses.replace(manifest, group_id=manifest.group_id + np.uint64(12345))  # a new first of each group
    assert fold_of(renamed.group_id.tolist(), 3).tolist() != before.tolist()
    assert folds_of_rows(renamed, assigned, 3).tolist() == before.tolist()
    of_a_copy = {identifier: fold for identifier, fold in assigned.items() if identifier != int(manifest.sample_id[0])}
    group = np.array(renamed.group_id)
    group[0] = group[1]  # photograph 0 is new, and a near-duplicate of 1
    later = folds_of_rows(dataclasses.replace(renamed, group_id=group), of_a_copy, 3)
    assert later[0] == before[1]


def test_features_of_changed_photographs_are_computed_anew(
    adapted: dict[str, Any], folder: Path, tmp_path: Path
) -> None:
    shutil.copytree(folder / "data", tmp_path / "data")
    shutil.copytree(folder / "results" / "features", tmp_path / "results" / "features")
    changed = sorted((tmp_path / "data" / "dog").glob("*.jpg"))[0]
    changed.write_bytes(sorted((tmp_path / "data" / "roof").glob("*.jpg"))[0].read_bytes())
    calls: list[int] = []
    real = Annotator.pooled

    def counted(self: Annotator, images: torch.Tensor) -> torch.Tensor:
        calls.append(len(images))
        return real(self, images)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Annotator, "pooled", counted)
        done = tmp_path / "results" / "annotators" / "mine-00000000" / "adapted.done"
        adapt_annotator(spec_of(0), machine_of(tmp_path), manifests_of(tmp_path), done, None)
    assert sum(calls) == 1
