"""Measures against counts by hand: shares, calibration, each class, reassessed labels, part of the classes."""

from __future__ import annotations

import csv
import io
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from tests.conftest import machine_settings
from tokenlabel.core.errors import CheckpointError, DataError
from tokenlabel.engine.validation import CenterCrops
from tokenlabel.eval.measures import Measured, Tally, classes_csv, measure_answers
from tokenlabel.eval.test_sets import ImageSet, open_image_set

NAMES = tuple("abcdefg")


def tallied(
    logits: torch.Tensor, classes: torch.Tensor, batch: int, real: list[list[int]] | None = None, skipped: int = 0
) -> Measured:
    tally = Tally(logits.shape[1])
    for start in range(0, len(logits), batch):
        part = slice(start, start + batch)
        tally.add(logits[part], classes[part], real and real[part])
    names = NAMES[: logits.shape[1]]
    return tally.result(names, range(len(names)), skipped, with_real=real is not None)


@pytest.fixture
def answers() -> tuple[torch.Tensor, torch.Tensor]:
    """50 answers over 7 classes; the last class has no photograph."""
    torch.manual_seed(0)
    return torch.randn(50, 7), torch.randint(0, 6, (50,))


@pytest.mark.parametrize("batch", [50, 7, 1])
def test_shares_are_counts_whatever_the_batch(answers: tuple[torch.Tensor, torch.Tensor], batch: int) -> None:
    logits, classes = answers
    found = tallied(logits, classes, batch, skipped=3)
    ranks = (logits > logits.gather(1, classes[:, None])).sum(1)
    assert found.top1 == 100 * int((ranks == 0).sum()) / 50
    assert found.top5 == 100 * int((ranks < 5).sum()) / 50
    assert (found.images, found.skipped, found.real_top1) == (50, 3, None)
    for entry in found.classes[:6]:
        own = classes == entry.class_index
        assert entry.images == int(own.sum())
        assert entry.top1 == pytest.approx(100 * float((ranks[own] == 0).float().mean()))
        assert entry.confidence == pytest.approx(float(logits[own].softmax(-1).amax(-1).mean()), abs=1e-6)
    assert (found.classes[6].images, found.classes[6].top1, found.classes[6].confidence) == (0, None, None)


def test_five_of_fewer_classes_are_all_of_them() -> None:
    found = tallied(torch.tensor([[2.0, 1.0, 0.0]] * 4), torch.tensor([0, 1, 2, 2]), 4)
    assert (found.top1, found.top5) == (25.0, 100.0)


@pytest.mark.parametrize(("right", "expected"), [(3, 0.0), (4, 25.0), (0, 75.0)])
def test_calibration_is_the_gap_between_confidence_and_accuracy(right: int, expected: float) -> None:
    """Four answers that are three quarters sure."""
    logits = torch.log(torch.tensor([[0.75, 0.25]] * 4))
    classes = torch.tensor([0] * right + [1] * (4 - right))
    assert tallied(logits, classes, 3).ece == pytest.approx(expected, abs=1e-4)


def test_a_photograph_counts_for_any_of_its_reassessed_labels_and_none_without() -> None:
    logits = torch.eye(4)[[0, 1, 2, 3]] * 9
    found = tallied(logits, torch.tensor([0, 0, 0, 0]), 2, real=[[3, 0], [], [1], [2, 3]])
    assert found.top1 == 25.0
    assert (found.real_images, found.real_top1) == (3, pytest.approx(200 / 3))


def test_the_classes_table_has_a_line_each_and_empty_cells_where_nothing_was_measured() -> None:
    found = tallied(torch.tensor([[0.0, 9.0, 0.0], [0.0, 9.0, 0.0]]), torch.tensor([1, 0]), 2)
    rows = list(csv.DictReader(io.StringIO(classes_csv(found.classes))))
    assert [(row["class_index"], row["folder"], row["images"], row["top1"]) for row in rows] == [
        ("0", "a", "1", "0.00"), ("1", "b", "1", "100.00"), ("2", "c", "0", ""),
    ]  # fmt: skip
    assert rows[2]["mean_confidence"] == ""
    assert rows[0]["mean_confidence"] == rows[1]["mean_confidence"] == "0.9998"


class Fixed(nn.Module):
    """Says the same of every photograph."""

    def __init__(self, logits: list[float]) -> None:
        super().__init__()
        self.logits = nn.Parameter(torch.tensor(logits))

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.logits.expand(len(images), -1)


def small_set(photographs: Path, folder: Path, classes: int) -> ImageSet:
    """The first folders of the demo's photographs, one of them a broken file."""
    for place in sorted((photographs / "val").iterdir())[:classes]:
        (folder / place.name).mkdir(parents=True)
        for path in place.iterdir():
            (folder / place.name / path.name).write_bytes(path.read_bytes())
    names = sorted(place.name for place in folder.iterdir())
    (folder / names[0] / "broken.jpg").write_bytes(b"no photograph")
    return open_image_set(folder, "names", ["other", *names, "another"], title="folder")


def measured(model: nn.Module, chosen: ImageSet) -> Measured:
    machine = chosen.machine(machine_settings(chosen.place))
    crops = CenterCrops(chosen.manifest, machine, 32, 0.9, "bicubic", (0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
    return measure_answers(
        model, crops, chosen.manifest, machine, columns=chosen.columns, where="some.pth", device=torch.device("cpu"),
        precision=torch.float32,
    )  # fmt: skip


def test_classes_that_a_set_has_not_are_no_answers(photographs: Path, tmp_path: Path) -> None:
    chosen = small_set(photographs, tmp_path / "set", 3)
    found = measured(Fixed([9.0, 0.0, 2.0, 1.0, 9.0]), chosen)  # the first and the last are not in the set
    assert [entry.class_index for entry in found.classes] == [1, 2, 3]
    assert [entry.top1 for entry in found.classes] == [0.0, 100.0, 0.0]
    assert (found.images, found.skipped) == (6, 1)
    expected = float(torch.tensor([0.0, 2.0, 1.0]).softmax(-1).max())
    assert np.isclose(found.classes[0].confidence or 0, expected)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_logits_that_are_no_numbers_are_refused(photographs: Path, tmp_path: Path, value: float) -> None:
    chosen = small_set(photographs, tmp_path / "set", 2)
    with pytest.raises(CheckpointError, match=r"checkpoint some.pth: its logits of n\d+/.*\.jpg are NaN or infinite"):
        measured(Fixed([0.0, value, 0.0, 0.0]), chosen)


def test_a_set_of_broken_files_is_refused(photographs: Path, tmp_path: Path) -> None:
    chosen = small_set(photographs, tmp_path / "set", 1)
    for path in chosen.place.rglob("*.jpg"):
        path.write_bytes(b"no photograph"[: path.stat().st_size])
    chosen = open_image_set(chosen.place, "names", chosen.manifest.classes, title="folder")
    with pytest.raises(DataError, match="none of its 3 photographs can be read"):
        measured(Fixed([0.0]), chosen)
