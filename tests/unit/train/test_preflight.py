"""Before the first step: real Lite0 labels of real photographs, with the mistakes that cost others days."""

from __future__ import annotations

import dataclasses
import logging
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from tokenlabel.core.config import Recipe
from tokenlabel.core.errors import LabelError
from tokenlabel.core.log import logger
from tokenlabel.data.manifest import Manifest
from tokenlabel.labels import LabelStore
from tokenlabel.train.batches import TrainingSet
from tokenlabel.train.job import _optimisation
from tokenlabel.train.preflight import (
    LabelCoverage,
    check_before_training,
    check_classes,
    describe_augmentation,
    describe_learning_rate,
)

from .conftest import Workplace

OWN = np.arange(1000)
CLASSES = tuple(f"class{number:04d}" for number in range(1000))


@pytest.fixture
def store(workplace: Workplace) -> LabelStore:
    return LabelStore(workplace.labels, "train")


@pytest.fixture
def said(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> pytest.LogCaptureFixture:
    monkeypatch.setattr(logger, "propagate", True)
    caplog.set_level(logging.INFO, "tokenlabel")
    return caplog


def check(spec: dict[str, Any], workplace: Workplace, manifest: Manifest, **changes: Any) -> None:
    recipe = Recipe.model_validate(spec["recipe"] | changes.pop("recipe", {}))
    options = {
        "store": LabelStore(workplace.labels, "train"), "batches_size": 12, "processes_count": 1, "parameters": 10**6,
        "machine": workplace.machine,
    } | changes  # fmt: skip
    check_before_training(spec=spec, recipe=recipe, manifest=manifest, classes=manifest.classes, **options)


def ordered(manifest: Manifest, order: NDArray[np.int64]) -> Manifest:
    """The manifest for which the stored labels are in another order: class c of it has number order[c] there."""
    return dataclasses.replace(manifest, class_index=np.argsort(order)[manifest.class_index].astype(np.int32))


def test_what_the_run_does_is_said_in_ten_lines(
    spec: dict[str, Any], workplace: Workplace, said: pytest.LogCaptureFixture
) -> None:
    spec["recipe"] |= {"learning_rate_batch": 640, "batch_size": 1024, "warmup_epochs": 1}
    check(
        spec, workplace, workplace.manifests["train"], machine=workplace.machine | {"micro_batch": 3}, processes_count=2
    )
    lines = {line[2:15].strip(): line[17:] for line in said.messages}
    assert len(said.messages) == 10
    assert lines["photographs"] == "35 of 6 classes"
    assert lines["labels"] == "lite0, for 100 % of the photographs, 1 unreadable left out"
    assert lines["class order"].endswith("of 35 photographs")
    assert lines["supervision"] == "token: class loss (the pooled map) + 1 x token loss, smoothing 0.1"
    assert lines["batch"] == "12 = 3 (micro-batch) x 2 (accumulated) x 2 (processes); 2 steps an epoch"
    assert lines["learning rate"] == (
        "1.875e-05 = 0.001 x 12 / 640 (follows the batch; the recipe's 1024 would have 0.0016)"
    )
    assert lines["schedule"] == "3 epochs, cosine to 1e-05, warm-up from 1e-06 in 1 epochs (2 steps)"
    assert "a checkpoint 16 MB" in lines["weights"]
    assert not [record for record in said.records if record.levelno > logging.INFO]


def test_a_small_data_sets_rate_never_rises_where_it_should_fall(
    spec: dict[str, Any], workplace: Workplace, said: pytest.LogCaptureFixture
) -> None:
    """Its batch is smaller than the recipe's, and so is its rate: here below the floor and the first rate."""
    spec["recipe"] |= {"learning_rate_batch": 100_000, "batch_size": 100_000, "warmup_epochs": 1}
    check(spec, workplace, workplace.manifests["train"])
    lines = {line[2:15].strip(): line[17:] for line in said.messages}
    assert lines["learning rate"].startswith("1.2e-07 = ")
    assert lines["schedule"] == "3 epochs, cosine to 1.2e-07, warm-up from 1.2e-07 in 1 epochs (2 steps)"
    used = _optimisation(Recipe.model_validate(spec["recipe"]), 12)
    assert used.learning_rate == used.min_learning_rate == used.warmup_learning_rate == pytest.approx(1.2e-7)


def test_hard_labels_need_no_store(spec: dict[str, Any], workplace: Workplace, said: pytest.LogCaptureFixture) -> None:
    check(spec, workplace, workplace.manifests["train"], store=None, recipe={"supervision": "hard"})
    assert not any("class order" in line for line in said.messages)
    assert any("hard: the folder's class" in line for line in said.messages)


@pytest.mark.parametrize(
    ("order", "hint"),
    [
        (np.random.default_rng(1).permutation(1000), r"folder n\d{8} is labeled class \d+ in [456] of 6 photographs"),
        (np.roll(OWN, -1), "the labels fit every class one too high.*background"),
        (np.roll(OWN, 1), "the labels fit every class one too low"),
        (OWN[::-1].copy(), "the labels fit reversed order"),
    ],
    ids=["permuted", "one too high", "one too low", "reversed"],
)
def test_labels_in_another_class_order_stop_and_are_explained(
    store: LabelStore, workplace: Workplace, order: NDArray[np.int64], hint: str
) -> None:
    manifest = workplace.manifests["train"]
    assert "of 35 photographs" in check_classes(store, manifest, manifest.classes)
    with pytest.raises(LabelError, match=hint) as error:
        check_classes(store, ordered(manifest, order), manifest.classes)
    assert "are not in the class order of the folders" in str(error.value)
    assert "\n" not in str(error.value)


def test_two_exchanged_classes_are_named(store: LabelStore, workplace: Workplace) -> None:
    manifest = workplace.manifests["train"]
    first, second = np.unique(manifest.class_index)[[0, 4]].tolist()  # Lite0 knows both
    order = OWN.copy()
    order[[first, second]] = second, first
    with pytest.raises(LabelError, match="is labeled class") as error:
        check_classes(store, ordered(manifest, order), manifest.classes)
    assert manifest.classes[first] in str(error.value)
    assert manifest.classes[second] in str(error.value)


def test_labels_of_other_classes_are_refused(store: LabelStore, workplace: Workplace) -> None:
    with pytest.raises(LabelError, match="of 1,000 classes, the data set has 20"):
        check_classes(store, workplace.manifests["train"], CLASSES[:20])


def without_labels(manifest: Manifest, count: int) -> Manifest:
    """The manifest after photographs were added that nobody labeled."""
    identifiers = manifest.sample_id.copy()
    identifiers[-count:] += np.uint64(1)
    return dataclasses.replace(manifest, sample_id=identifiers)


def test_too_few_labels_stop_unless_allowed(
    spec: dict[str, Any], workplace: Workplace, store: LabelStore, said: pytest.LogCaptureFixture
) -> None:
    manifest = without_labels(workplace.manifests["train"], 2)
    assert LabelCoverage.of(store, manifest) == LabelCoverage(labeled=33, unreadable=1, missing=2)
    with pytest.raises(
        LabelError, match=r"cover 94\.2 % of the training set: 2 of 35 readable.*min_label_coverage to 0\.94"
    ):
        check(spec, workplace, manifest)
    assert not said.messages  # stopped before anything else was said
    check(spec, workplace, manifest, machine=workplace.machine | {"min_label_coverage": 0.94})
    assert any(
        "for 94.2 % of the photographs, 1 unreadable left out, 2 unlabeled left out" in line for line in said.messages
    )


def test_photographs_without_a_label_take_no_part(workplace: Workplace, store: LabelStore) -> None:
    manifest = without_labels(workplace.manifests["train"], 2)
    dataset = TrainingSet.__new__(TrainingSet)  # no augmentation is needed to count
    dataset._manifest, dataset._store = manifest, store
    rows, unreadable = dataset._usable_rows()
    assert (len(rows), unreadable) == (33, 1)
    assert not set(rows.tolist()) & {34, 35}


def test_unreadable_photographs_are_no_missing_labels(workplace: Workplace, store: LabelStore) -> None:
    coverage = LabelCoverage.of(store, workplace.manifests["train"])
    assert (coverage.unreadable, coverage.missing, coverage.share) == (1, 0, 1.0)


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({}, "RandAugment 9/0.5 (2 of 15 operations), erasing 0.25 (pixel), flip 0.5, crop 0.08 to 1 of the area, mix mixtoken"),
        ({"randaugment_count": 0}, "RandAugment OFF (magnitude 9/0.5 has no effect: randaugment_count is 0), erasing"),
        ({"erasing_probability": 0.0, "mix": "none"}, "no erasing, flip 0.5, crop 0.08 to 1 of the area, no mixing"),
        ({"mix": "cutmix", "mix_probability": 0.5}, "mix cutmix of 50 % of the batches"),
    ],
)  # fmt: skip
def test_the_augmentation_is_one_line(spec: dict[str, Any], changes: dict[str, Any], expected: str) -> None:
    assert expected in describe_augmentation(Recipe.model_validate(spec["recipe"] | changes))


def test_a_rate_that_does_not_follow_a_small_batch_is_a_warning(
    spec: dict[str, Any], workplace: Workplace, said: pytest.LogCaptureFixture
) -> None:
    check(spec, workplace, workplace.manifests["train"], recipe={"batch_size": 1024, "learning_rate_batch": None})
    (warning,) = [record.getMessage() for record in said.records if record.levelno == logging.WARNING]
    assert "the batch is 12, the recipe's is 1024, and the learning rate stays 0.001" in warning
    full = Recipe.model_validate(spec["recipe"] | {"batch_size": 1024, "learning_rate_batch": 640})
    assert describe_learning_rate(full, 1024) == "0.0016 = 0.001 x 1024 / 640"
