"""The whole path, from files through somebody's transform and loader to targets, for each view of the maps."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from timm.data import create_dataset, create_loader
from torch.utils.data import DataLoader
from torchvision.datasets import ImageFolder
from torchvision.transforms import v2

from tokenlabel.core.errors import LabelError
from tokenlabel.core.seeds import sample_id
from tokenlabel.labels import LabeledDataset, LabelMaps, LabelStore, WithView, token_cross_entropy
from tokenlabel.labels.shards import STATUS_UNREADABLE, LabelRows

from .conftest import write_shard
from .drawing import region_maps, regions, shown_by_tokens

GRID, CELLS = (3, 4), (2, 3)  # regions of the drawn photographs, cells of the maps per region
CLASSES = GRID[0] * GRID[1]
SIZES = {
    "cat/wide.one.png": (320, 200),
    "cat/tall.png": (180, 300),
    "dog/square.png": (240, 240),
    "dog/lost.png": (200, 150),
}
LOST = "dog/lost.png"


def drawn(size: tuple[int, int], view: str) -> Image.Image:
    """Regions where the maps lie; the margin of a centre crop in the colour of fills."""
    covered = size if view == "squash" else (min(size), min(size))
    photograph = Image.new("RGB", size)
    photograph.paste(regions(*covered, GRID), ((size[0] - covered[0]) // 2, (size[1] - covered[1]) // 2))
    return photograph


def data_and_labels(folder: Path, view: str, *, tail: bool = False) -> tuple[Path, LabelStore]:
    for path, size in SIZES.items():
        target = folder / "train" / path
        target.parent.mkdir(parents=True, exist_ok=True)
        drawn(size, view).save(target)
    scores, classes = region_maps(GRID, CELLS)
    count = len(SIZES)
    rows = LabelRows(
        sample_id=np.array([sample_id(path) for path in SIZES], dtype=np.uint64),
        scores=scores.repeat(count, 0).astype(np.float16),
        classes=classes.repeat(count, 0).astype(np.uint16),
        tail=np.zeros((count, *classes.shape[1:3]), np.float16) if tail else None,
        image_size=np.array([size[::-1] for size in SIZES.values()], dtype=np.uint32),
        status=np.array([STATUS_UNREADABLE if path == LOST else 0 for path in SIZES], dtype=np.uint8),
        reason=["cannot identify image file" if path == LOST else "" for path in SIZES],
    )
    lost = list(SIZES).index(LOST)
    rows.scores[lost], rows.classes[lost], rows.image_size[lost] = 0, 0, 0
    labels = folder / "labels"
    labels.mkdir()
    write_shard(labels, rows, view=view, num_classes=CLASSES, rows=classes.shape[1], cols=classes.shape[2], k=1)
    return folder / "train", LabelStore(labels, "train")


def image_folder(root: Path, store: LabelStore, transform: Any) -> LabeledDataset:
    dataset = ImageFolder(root, transform=transform)
    return LabeledDataset(dataset, store, [Path(path).relative_to(root).as_posix() for path, _ in dataset.samples])


MOVING = v2.Compose([
    v2.RandomResizedCrop((192, 256), (0.5, 1.0), interpolation=v2.InterpolationMode.NEAREST),
    v2.RandomHorizontalFlip(), v2.RandomVerticalFlip(), v2.RandomAffine(15, (0.1, 0.1)), v2.ToImage(),
])  # fmt: skip


@pytest.mark.parametrize("view", ["squash", "centre_crop"])
def test_targets_say_what_the_pixels_show(view: str, tmp_path: Path) -> None:
    dataset = image_folder(*data_and_labels(tmp_path, view), MOVING)
    tokens = (12, 16)
    compared = 0
    torch.manual_seed(0)
    for images, maps in DataLoader(dataset, batch_size=2, collate_fn=dataset.collate):
        targets = maps.token_targets(tokens)
        best = np.where(targets.inside, targets.dense().argmax(-1), -1)
        for image, found, labeled in zip(images, best, maps.labeled, strict=True):
            expected, sure = shown_by_tokens(image.permute(1, 2, 0).numpy(), GRID, tokens, doubt_px=5)
            if not labeled:
                assert (found == -1).all()
                continue
            sure &= expected >= 0  # a fill may hide what a step pushed over the border
            assert (found == expected)[sure].all()
            compared += sure.sum()
    assert compared > 60


def test_a_centre_crops_margin_is_masked(tmp_path: Path) -> None:
    dataset = image_folder(*data_and_labels(tmp_path, "centre_crop"), v2.Compose([v2.Resize((64, 64)), v2.ToImage()]))
    _, maps = dataset.collate([dataset[index] for index in range(4)])
    inside = maps.token_targets((4, 16)).inside.view(4, 4, 16)
    names = [Path(path).name for path, _ in dataset.dataset.samples]
    wide = inside[names.index("wide.one.png")]
    assert wide[:, 3:13].all()  # 200 of 320 px are labelled: 3 of 16 columns are not, on either side
    assert not wide[:, :3].any()
    assert not wide[:, 13:].any()
    assert inside[names.index("square.png")].all()


def test_a_photograph_without_a_label_contributes_nothing(tmp_path: Path) -> None:
    dataset = image_folder(*data_and_labels(tmp_path, "centre_crop"), v2.Compose([v2.Resize((32, 32)), v2.ToImage()]))
    images, maps = dataset.collate([dataset[index] for index in range(4)])
    assert images.shape == (4, 3, 32, 32)
    assert maps.unlabeled == 1
    logits = torch.randn(4, 64, CLASSES, requires_grad=True)
    token_cross_entropy(logits, maps.token_targets((8, 8))).backward()
    assert logits.grad is not None
    assert (logits.grad.abs().sum((1, 2)) > 0).tolist() == maps.labeled.tolist()
    alone = next(index for index in range(4) if not maps.labeled[index])
    _, lost = dataset.collate([dataset[alone]])  # a batch of one, of which nothing is labelled
    assert lost.unlabeled == len(lost) == 1
    assert token_cross_entropy(torch.randn(1, 64, CLASSES), lost.token_targets((8, 8))) == 0
    assert token_cross_entropy(torch.randn(1, 1, CLASSES), lost.class_targets()) == 0


def test_class_targets_pool_the_map(tmp_path: Path) -> None:
    dataset = image_folder(
        *data_and_labels(tmp_path, "squash", tail=True), v2.Compose([v2.Resize((32, 32)), v2.ToImage()])
    )
    _, maps = dataset.collate([dataset[0]])
    torch.testing.assert_close(maps.class_targets().dense()[0, 0], torch.full((CLASSES,), 1 / CLASSES))
    exact = maps.token_targets(GRID, exact=True).dense()[0]  # each token lies on one region
    mass = np.exp(8.0) / (np.exp(8.0) + 1)
    torch.testing.assert_close(exact.diagonal(), torch.full((CLASSES,), mass, dtype=torch.float32))


@pytest.mark.filterwarnings(
    "ignore::ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning"
)  # timm's files
@pytest.mark.parametrize("use_prefetcher", [False, True])
def test_timms_loader_carries_the_maps(use_prefetcher: bool, tmp_path: Path) -> None:
    root, store = data_and_labels(tmp_path, "squash")
    inner = create_dataset("", root=root.parent, split="train", is_training=True)
    dataset = LabeledDataset(inner, store, inner.filenames())
    loader = create_loader(
        dataset, (3, 64, 64), batch_size=2, is_training=True, use_prefetcher=use_prefetcher, num_workers=0, hflip=0.5,
        auto_augment="rand-m9", re_prob=0.5, collate_fn=dataset.collate, device=torch.device("cpu"), persistent_workers=False,
    )  # fmt: skip
    assert isinstance(dataset.transform, WithView)
    seen = 0
    for images, maps in loader:
        assert images.dtype == torch.float32
        assert isinstance(maps, LabelMaps)
        assert maps.to("cpu").token_targets((4, 4)).inside.shape == (2, 16)
        seen += len(maps)
    assert seen == 4


@pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning")
def test_a_photograph_that_timm_cannot_read_is_skipped_with_its_label(tmp_path: Path) -> None:
    root, store = data_and_labels(tmp_path, "squash")
    inner = create_dataset("", root=root.parent, split="train", is_training=True)
    inner.transform = v2.Compose([v2.Resize((32, 32)), v2.ToImage()])
    names = inner.filenames()
    dataset = LabeledDataset(inner, store, names)
    whole = dataset[1]
    (root / names[0]).write_bytes(b"no picture")
    for _ in range(2):
        image, class_index, _, label = dataset[0]
        torch.testing.assert_close(image, whole[0])
        assert (class_index, label.sample_id) == (whole[1], store.id_for(names[1]))
    for name in names:
        (root / name).write_bytes(b"no picture")
    with pytest.raises(LabelError, match="50 photographs in a row"):
        dataset[0]


def test_maps_pickle_and_keep_their_types(tmp_path: Path) -> None:
    dataset = pickle.loads(pickle.dumps(image_folder(*data_and_labels(tmp_path, "squash"), MOVING)))
    _, maps = dataset.collate([dataset[0], dataset[1]])
    copied = pickle.loads(pickle.dumps(maps)).to("cpu")
    assert (copied.scores.dtype, copied.classes.dtype) == (torch.float16, torch.int32)
    assert copied.class_index.tolist() == [0, 0]
    assert copied.num_classes == CLASSES
    with pytest.raises(LabelError, match="exact targets need labels with a tail"):
        copied.token_targets((2, 2), exact=True)


def test_mistakes_are_named(tmp_path: Path) -> None:
    root, store = data_and_labels(tmp_path, "squash")
    dataset = ImageFolder(root)
    with pytest.raises(LabelError, match="3 paths for a data set of 4 photographs"):
        LabeledDataset(dataset, store, ["a", "b", "c"])
    with pytest.raises(LabelError, match=r"no label for '/.*/train/cat/tall.png'"):
        LabeledDataset(dataset, store, [path for path, _ in dataset.samples])
    labelled = image_folder(root, store, MOVING)
    labelled.dataset.transform = MOVING  # past the wrapper
    with pytest.raises(LabelError, match=r"set the transform through LabeledDataset\.transform"):
        labelled[0]
