"""Near-duplicates of real photographs are found, crops and other photographs are not, and a split keeps them on one side."""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageEnhance, ImageOps

from tests.unit.data.test_manifest import machine, spec
from tokenlabel.data import duplicates
from tokenlabel.data.duplicates import find_near_duplicates
from tokenlabel.data.manifest import build_manifests
from tokenlabel.demo.photographs import find_photographs


def jpeg(picture: Image.Image, quality: int = 90) -> bytes:
    out = io.BytesIO()
    picture.save(out, "JPEG", quality=quality)
    return out.getvalue()


@pytest.fixture(scope="module")
def originals() -> list[Image.Image]:
    return [ImageOps.contain(Image.open(path).convert("RGB"), (256, 256)) for _, path in find_photographs()]


ALTERATIONS: dict[str, Callable[[Image.Image], Image.Image]] = {
    "as it is": lambda p: p,
    "half the size": lambda p: p.resize((p.width // 2, p.height // 2)),
    "brighter": lambda p: ImageEnhance.Brightness(p).enhance(1.2),
    "less contrast": lambda p: ImageEnhance.Contrast(p).enhance(0.8),
    "mirrored": ImageOps.mirror,
    "grey": lambda p: p.convert("L"),
    "trimmed by 1 %": lambda p: ImageOps.crop(p, round(0.01 * p.width)),
}


def test_altered_copies_are_found_and_other_photographs_are_not(originals: list[Image.Image]) -> None:
    files = [jpeg(change(picture), 60) for change in ALTERATIONS.values() for picture in originals]
    groups, readable = find_near_duplicates(files.__getitem__, len(files), threads=2)
    assert readable.all()
    by_alteration = groups.reshape(len(ALTERATIONS), len(originals))
    assert len(set(by_alteration[0].tolist())) == len(originals)  # no two photographs are one
    found = (by_alteration == by_alteration[0]).mean(1)
    assert dict(zip(ALTERATIONS, found.tolist(), strict=True)) == pytest.approx(
        dict.fromkeys(ALTERATIONS, 1.0), abs=0.051
    )


def test_crops_and_unreadable_files_are_on_their_own(photographs: Path) -> None:
    files = [path.read_bytes() for path in sorted((photographs / "train").rglob("*.jpg"))[:60]]
    files[5], files[6] = b"", b"<html>"
    groups, readable = find_near_duplicates(files.__getitem__, len(files))
    assert np.flatnonzero(~readable).tolist() == [5, 6]
    assert len(set(groups.tolist())) >= 58  # overlapping crops of 0.45 to 0.9 of a photograph are different pictures


def test_above_the_limit_only_identical_hashes_are_grouped(
    originals: list[Image.Image], monkeypatch: pytest.MonkeyPatch
) -> None:
    files = [jpeg(picture) for picture in originals] * 2
    monkeypatch.setattr(duplicates, "MOST_COMPARED", 10)
    groups, _ = find_near_duplicates(files.__getitem__, len(files))
    assert len(set(groups.tolist())) == len(originals)


@pytest.mark.parametrize("seed", range(5))
def test_a_split_keeps_near_duplicates_on_one_side(originals: list[Image.Image], tmp_path: Path, seed: int) -> None:
    for index, picture in enumerate(originals[:12]):
        for copy in range(3):
            path = tmp_path / "train" / "abc"[index % 3] / f"{index:02d}_{copy}.jpg"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(jpeg(picture, 90 - 20 * copy))
    settings = machine(tmp_path, val=None) | {"threads": 1}
    split = spec(val_fraction=0.25, val_seed=seed, near_duplicates=True)
    manifests = build_manifests(split, settings)
    sides = {
        name: {manifest.path(row).split("/")[1].split("_")[0] for row in range(len(manifest))}
        for name, manifest in manifests.items()
    }
    assert not sides["train"] & sides["val"]
    assert len(manifests["val"]) == 9  # one picture of each class, three copies
    assert manifests["train"].near_duplicates == 36
    apart = build_manifests(split | {"near_duplicates": False}, settings)
    assert {apart["val"].path(row) for row in range(len(apart["val"]))} != {
        manifests["val"].path(row) for row in range(9)
    }


def test_objects_on_a_plain_background_are_different_pictures() -> None:
    """Their hashes share the bits of the background; their grey levels tell them apart."""
    from PIL import ImageDraw

    def drawn(seed: int) -> Image.Image:
        generator = np.random.default_rng(seed)
        picture = Image.new("RGB", (200, 200), "white")
        for _ in range(2):
            x, y, width, height = (int(value) for value in generator.integers((30, 30, 20, 20), (110, 110, 70, 70)))
            colour = tuple(int(value) for value in generator.integers(0, 200, 3))
            ImageDraw.Draw(picture).ellipse((x, y, x + width, y + height), fill=colour)
        return picture

    files = [jpeg(drawn(seed)) for seed in range(40)]
    groups, _ = find_near_duplicates(files.__getitem__, len(files))
    assert len(set(groups.tolist())) >= 37


def test_a_large_group_does_not_swamp_the_validation_split() -> None:
    from tokenlabel.data.listing import Entry
    from tokenlabel.data.manifest import split_validation

    entries = [Entry(f"a/{index:03d}.jpg", 1, -1, 0, "a") for index in range(100)]
    groups = np.array([0] * 60 + list(range(1, 41)))
    for seed in range(8):
        _, aside = split_validation(entries, 0.1, seed, groups)
        assert len(aside) == 10
    _, aside = split_validation(entries[:62], 0.01, 0, np.array([0] * 60 + [1, 1]))
    assert len(aside) == 2  # none fits: the smallest group
    assert not split_validation(entries[:60], 0.1, 0, np.zeros(60, np.int64))[1]
