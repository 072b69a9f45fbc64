"""Test-time options with real weights: mirrored photographs, several resolutions, how many classes are kept."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn import functional as F

from tests.unit.annotate.test_annotate import (
    LABELS,
    LITE0,
    SPEC,
    annotate,
    lite0,  # noqa: F401 - fixtures
    workplace,  # noqa: F401
)
from tokenlabel.annotate.dense import Annotator
from tokenlabel.annotate.labeling import MapBatch, label_batch
from tokenlabel.cli import main
from tokenlabel.core.files import write_json
from tokenlabel.data.pixels import normalise, read_view
from tokenlabel.demo.photographs import find_photographs
from tokenlabel.labels import LabelStore, sparse_targets

K = 1000
WHOLE = torch.tensor([[0.0, 0.0, 1.0, 1.0]]).repeat(2, 1)


@pytest.fixture(scope="module")
def images() -> torch.Tensor:
    return torch.stack(
        [read_view(path.read_bytes(), 160, "squash", "bicubic")[0] for _, path in find_photographs()[:2]]
    )


def labeled(annotator: Annotator, images: torch.Tensor, **options: Any) -> MapBatch:
    spec = {"annotator": LITE0, "labels": LABELS | options}
    return label_batch(annotator, images, spec, torch.float32)


def dense(maps: MapBatch) -> torch.Tensor:
    """(batch, rows, cols, K) of a map that keeps all classes."""
    return torch.zeros(maps.scores.shape).scatter_(-1, maps.classes, maps.scores.float())


def test_flip_maps_a_mirrored_photograph_to_the_mirrored_map(lite0: Annotator, images: torch.Tensor) -> None:  # noqa: F811
    straight = dense(labeled(lite0, images, k=K, flip=True))
    mirrored = dense(labeled(lite0, images.flip(-1), k=K, flip=True))
    assert torch.allclose(straight, mirrored.flip(2), atol=2e-2)
    alone = dense(labeled(lite0, images, k=K)), dense(labeled(lite0, images.flip(-1), k=K)).flip(2)
    assert not torch.allclose(*alone, atol=0.5)  # without the option the two differ
    assert torch.allclose(straight, (alone[0] + alone[1]) / 2, atol=2e-2)


def test_scales_are_the_mean_of_maps_computed_by_hand(lite0: Annotator, images: torch.Tensor) -> None:  # noqa: F811
    found = dense(labeled(lite0, images, k=K, scales=[0.8, 1.0, 1.2]))
    pixels = normalise(images, lite0.preprocessing.mean, lite0.preprocessing.std)
    expected = torch.zeros_like(found)
    with torch.inference_mode():
        for side in (128, 160, 192):
            seen = F.interpolate(pixels, (side, side), mode="bilinear", antialias=True) if side != 160 else pixels
            logits = lite0(seen).permute(0, 3, 1, 2)
            if side != 160:
                assert logits.shape[2:] != (5, 5)
                logits = F.interpolate(logits, (5, 5), mode="bilinear", antialias=True)
            expected += logits.permute(0, 2, 3, 1) / 3
    assert torch.allclose(found, expected, atol=2e-2)
    assert not torch.allclose(found, dense(labeled(lite0, images, k=K)), atol=0.5)


def test_all_classes_give_the_annotators_own_softmax_and_fewer_the_best(
    lite0: Annotator,  # noqa: F811
    images: torch.Tensor,
) -> None:
    everything = labeled(lite0, images, k=K)
    with torch.inference_mode():
        logits = lite0(normalise(images, lite0.preprocessing.mean, lite0.preprocessing.std))
    targets = sparse_targets(everything.scores, everything.classes, WHOLE, grid=(5, 5), num_classes=K).dense()
    assert torch.allclose(targets, logits.softmax(-1).flatten(1, 2), atol=2e-3)
    for k in (1, 5, 10):
        maps = labeled(lite0, images, k=k, tail=True)
        best = logits.topk(k, dim=-1)
        assert torch.allclose(maps.scores.float(), best.values, atol=2e-2)
        assert maps.tail is not None
        whole = torch.cat([maps.scores.float(), maps.tail.float()[..., None]], -1).logsumexp(-1)
        assert torch.allclose(whole, logits.logsumexp(-1), atol=2e-2)  # tail and what is stored are all there is
        exact = sparse_targets(maps.scores, maps.classes, WHOLE, (5, 5), K, tail=maps.tail).dense()
        first = best.indices.flatten(1, 2)
        wanted = logits.softmax(-1).flatten(1, 2)
        assert torch.allclose(exact.gather(-1, first), wanted.gather(-1, first), atol=5e-3)


def test_a_shard_says_which_views_its_labels_are_the_mean_of(
    workplace: Path,  # noqa: F811
    capsys: pytest.CaptureFixture[str],
) -> None:
    options = {"k": 10, "flip": True, "scales": [0.8, 1.0]}
    write_json(workplace / "spec.json", SPEC | {"labels": LABELS | options})
    finished = annotate(workplace)
    assert finished.returncode == 0, finished.stderr
    folder = workplace / "labels" / "lite0-00000000"
    store = LabelStore(folder, "train")
    assert store.k == 10
    assert main(["labels", "inspect", str(folder)]) == 0
    shown = capsys.readouterr().out
    assert "'flip': True" in shown
    assert "'scales': [0.8, 1.0]" in shown
    assert "'compute_precision': 'float32'" in shown
