"""Photographs and masks are paired and checked before anything is trained; each mistake is one line that names the file."""

from __future__ import annotations

import json
import logging
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from tests.scenes import CLASSES, scene_machine, scene_spec, write_scene_manifests, write_scenes
from tokenlabel.cli import main
from tokenlabel.core.errors import DataError, UnreadableImageError
from tokenlabel.core.files import write_json
from tokenlabel.data import scenes
from tokenlabel.data.scenes import IGNORED, build_scene_manifests, load_scene_manifest


@pytest.fixture(scope="module")
def drawn(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("scenes")
    write_scenes(root)
    return root


@pytest.fixture
def root(drawn: Path, tmp_path: Path) -> Path:
    """Scenes that a test may spoil."""
    return Path(shutil.copytree(drawn, tmp_path / "scenes"))


def image(root: Path, index: int = 3, split: str = "training") -> Path:
    return root / "images" / split / f"scene_{index:03d}.png"


def mask(root: Path, index: int = 3, split: str = "training") -> Path:
    return root / "annotations" / split / f"scene_{index:03d}.png"


def test_scenes_come_out_as_they_were_drawn(drawn: Path, tmp_path: Path) -> None:
    written = write_scene_manifests(tmp_path, drawn)
    counted = np.zeros(len(CLASSES), int)
    for split, count in (("train", 8), ("val", 4)):
        manifest = load_scene_manifest(tmp_path, split)
        assert len(manifest) == count
        assert manifest.classes == CLASSES
        assert manifest.size_px.tolist() == [[40, 56]] * count
        assert manifest.image_paths == tuple(f"scene_{index:03d}.png" for index in range(count))
        for name, column in vars(written[split]).items():
            assert np.array_equal(column, getattr(manifest, name)), name
        scenes = manifest.open(scene_machine(drawn))
        for row in range(count):
            scene = scenes.read(row)
            folder = {"train": "training", "val": "validation"}[split]
            pixels, ids = (np.array(Image.open(place(drawn, row, folder))) for place in (image, mask))
            assert torch.equal(scene.image, torch.from_numpy(pixels).permute(2, 0, 1))
            assert scene.mask.dtype == torch.int16
            assert torch.equal(scene.mask, torch.from_numpy(ids.astype(np.int16) - 1))
            counted += np.bincount(ids.ravel(), minlength=4)[1:] if split == "train" else 0
    assert written["train"].class_pixels.tolist() == counted.tolist()
    assert (scene.mask[:, :2] == IGNORED).all()


def test_threads_and_a_cap(drawn: Path) -> None:
    whole = build_scene_manifests(scene_spec(), scene_machine(drawn))
    threaded = build_scene_manifests(scene_spec(), scene_machine(drawn, threads=3))
    assert whole["train"].image_paths == threaded["train"].image_paths
    assert (whole["train"].class_pixels == threaded["train"].class_pixels).all()
    few = build_scene_manifests(scene_spec(images=3), scene_machine(drawn))
    assert len(few["train"]) == 3
    assert set(few["train"].image_paths) < set(whole["train"].image_paths)
    assert len(few["val"]) == 4


def test_any_folder_with_a_class_file_and_an_ignored_id_of_its_own(root: Path) -> None:
    """Photographs as JPEG at any depth, masks as palette PNGs, ids from 0, 255 ignored."""
    for split in ("training", "validation"):
        for path in (root / "images" / split).iterdir():
            target = root / "photos" / split / "town" / f"{path.stem}.jpg"
            target.parent.mkdir(parents=True, exist_ok=True)
            Image.open(path).save(target)
            ids = np.array(Image.open(mask(root, int(path.stem[-3:]), split))) - np.uint8(1)
            drawn = Image.fromarray(ids).convert("P")
            drawn.putpalette([level for index in range(256) for level in (index, 255 - index, 7)])
            target = root / "labels" / split / "town" / f"{path.stem}.png"
            target.parent.mkdir(parents=True, exist_ok=True)
            drawn.save(target)
    (root / "names.txt").write_text("\n".join(CLASSES))
    (root / "labels" / "training" / "._town.png").write_bytes(b"a Macintosh's")
    machine = scene_machine(root)
    machine["scenes"] |= {"classes": "names.txt"} | {
        split: {"images": f"photos/{folder}", "masks": f"labels/{folder}"}
        for split, folder in (("train", "training"), ("val", "validation"))
    }
    manifests = build_scene_manifests(scene_spec(first_id=0, ignore_id=255), machine)
    assert manifests["train"].image_paths[0] == "town/scene_000.jpg"
    expected = build_scene_manifests(scene_spec(), scene_machine(root))
    assert (manifests["train"].class_pixels == expected["train"].class_pixels).all()
    read = manifests["val"].open(machine).read(1)
    assert torch.equal(read.mask, expected["val"].open(scene_machine(root)).read(1).mask)


def test_photographs_and_masks_may_share_a_folder(root: Path) -> None:
    machine = scene_machine(root)
    for split, folder in (("train", "training"), ("val", "validation")):
        for path in sorted((root / "images" / folder).iterdir()):
            Image.open(path).save(root / "annotations" / folder / f"{path.stem}.jpg")
        machine["scenes"][split] = {"images": f"annotations/{folder}", "masks": f"annotations/{folder}"}
    manifest = build_scene_manifests(scene_spec(), machine)["train"]
    assert (manifest.image_paths[2], manifest.mask_paths[2]) == ("scene_002.jpg", "scene_002.png")
    assert len(manifest) == 8


def renamed(root: Path, kind: str, ending: str) -> None:
    for folder in ("training", "validation"):
        for path in (root / kind / folder).iterdir():
            path.rename(path.with_name(f"{path.stem}{ending}.png"))


def test_names_may_end_differently(root: Path) -> None:
    """As Cityscapes has them: a photograph has several PNGs, of which one holds the ids."""
    renamed(root, "images", "_leftImg8bit")
    renamed(root, "annotations", "_gtFine_labelTrainIds")
    for path in list((root / "annotations" / "training").iterdir()):
        name = path.name.removesuffix("_gtFine_labelTrainIds.png")
        Image.new("RGB", (56, 40)).save(path.with_name(f"{name}_gtFine_color.png"))
        Image.new("L", (56, 40), 77).save(path.with_name(f"{name}_gtFine_labelIds.png"))
    machine = scene_machine(root)
    machine["scenes"] |= {"image_suffix": "_leftImg8bit", "mask_suffix": "_gtFine_labelTrainIds"}
    manifest = build_scene_manifests(scene_spec(), machine)["train"]
    assert len(manifest) == 8
    assert manifest.image_paths[2] == "scene_002_leftImg8bit.png"
    assert manifest.mask_paths[2] == "scene_002_gtFine_labelTrainIds.png"
    mask = root / "annotations" / "training" / "scene_002_gtFine_labelTrainIds.png"
    assert manifest.open(machine).read(2).mask.tolist() == (np.array(Image.open(mask)).astype(int) - 1).tolist()
    mask.unlink()
    with pytest.raises(DataError, match=r"scene_002_leftImg8bit\.png: this photograph has no mask .*_labelTrainIds'"):
        build_scene_manifests(scene_spec(), machine)


@pytest.mark.parametrize(
    ("image_suffix", "mask_suffix"), [("", "_L"), ("_rgb", ""), ("_rgb", "_ids"), (".rgb", ".L")],
)  # fmt: skip
def test_photographs_and_masks_of_one_format_may_share_a_folder_by_their_endings(
    root: Path, image_suffix: str, mask_suffix: str
) -> None:
    expected = build_scene_manifests(scene_spec(), scene_machine(root))
    machine = scene_machine(root)
    machine["scenes"] |= {"image_suffix": image_suffix, "mask_suffix": mask_suffix}
    renamed(root, "images", image_suffix)
    renamed(root, "annotations", mask_suffix)
    for split, folder in (("train", "training"), ("val", "validation")):
        for path in (root / "annotations" / folder).iterdir():
            path.rename(root / "images" / folder / path.name)
        machine["scenes"][split] = {"images": f"images/{folder}", "masks": f"images/{folder}"}
    manifest = build_scene_manifests(scene_spec(), machine)["train"]
    assert manifest.image_paths[2] == f"scene_002{image_suffix}.png"
    assert manifest.mask_paths[2] == f"scene_002{mask_suffix}.png"
    assert (manifest.class_pixels == expected["train"].class_pixels).all()


def test_names_that_all_end_differently_are_refused_with_the_keys_to_set(root: Path) -> None:
    renamed(root, "annotations", "_L")
    with pytest.raises(DataError, match=r"has no mask .*\(nor have 7 more\).*image_suffix and mask_suffix\.$"):
        build_scene_manifests(scene_spec(), scene_machine(root))
    machine = scene_machine(root)
    machine["scenes"] |= {"image_suffix": "_photo", "mask_suffix": "_L"}
    with pytest.raises(DataError, match=r"no photograph whose name ends in '_photo'"):
        build_scene_manifests(scene_spec(), machine)


def other_size(root: Path) -> None:
    Image.open(mask(root)).resize((28, 20), Image.Resampling.NEAREST).save(mask(root))


def on_its_side(root: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.open(image(root)).save(image(root), exif=exif)


def beyond_the_class_file(root: Path) -> None:
    ids = np.array(Image.open(mask(root)))
    ids[5:7, 5:10] = 9
    Image.fromarray(ids).save(mask(root))


def colours(root: Path) -> None:
    Image.open(mask(root)).convert("RGB").save(mask(root))


def jpeg(root: Path) -> None:
    Image.open(mask(root)).save(mask(root), "JPEG")


def only_as_jpeg(root: Path) -> None:
    Image.open(mask(root)).save(mask(root).with_suffix(".jpg"))
    mask(root).unlink()


def all_ignored(root: Path) -> None:
    for path in (root / "annotations" / "training").iterdir():
        Image.new("L", (56, 40), 0).save(path)


def doubled_name(root: Path) -> None:
    Image.open(image(root)).save(image(root).with_suffix(".jpg"))


def no_photograph(root: Path) -> None:
    shutil.rmtree(root / "images" / "validation")
    (root / "images" / "validation").mkdir()


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (
            other_size,
            r"annotations/training/scene_003\.png: 28 x 20 pixels, its photograph scene_003\.png has 56 x 40\.",
        ),
        (
            on_its_side,
            r"scene_003\.png: 56 x 40 pixels, its photograph .* 40 x 56 \(it fits before .* EXIF orientation",
        ),
        (
            beyond_the_class_file,
            r"training/scene_003\.png: ids in the mask that stand for no class: 9 \(10 of 2,240 pixels\)",
        ),
        (colours, r"annotations/training/scene_003\.png: the mask has colours \(RGB\)"),
        (jpeg, r"annotations/training/scene_003\.png: the mask is JPEG"),
        (
            only_as_jpeg,
            r"images/training/scene_003\.png: this photograph has no mask \(PNG\) of the same name in .*/annotations",
        ),
        (lambda root: image(root).unlink(), r"annotations/training/scene_003\.png: this mask has no photograph"),
        (doubled_name, r"scene_003\.jpg and scene_003\.png have one name"),
        (all_ignored, r"split train: none of 8 masks has a pixel of a class"),
        (no_photograph, r"images/validation: no photograph"),
        (lambda root: shutil.rmtree(root / "annotations" / "validation"), r"annotations/validation: no such folder"),
        (shutil.rmtree, r"segmentation_root .*: no such folder on this machine"),
    ],
    ids=lambda value: getattr(value, "__name__", "").strip("<>"),
)
def test_scenes_that_do_not_fit_are_refused_in_one_line(
    spoil: Callable[[Path], object], message: str, root: Path
) -> None:
    spoil(root)
    with pytest.raises(DataError, match=message) as raised:
        build_scene_manifests(scene_spec(), scene_machine(root, threads=2))
    assert "\n" not in str(raised.value)


def test_the_first_mistake_is_told_before_the_rest_is_looked_at(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    looked: list[str] = []
    decode = scenes.decode_upright

    def noted(encoded: bytes) -> torch.Tensor:
        looked.append("")
        time.sleep(0.3)
        return decode(encoded)

    monkeypatch.setattr(scenes, "decode_upright", noted)
    colours_of_first = mask(root, 0)
    Image.open(colours_of_first).convert("RGB").save(colours_of_first)
    with pytest.raises(DataError, match=r"scene_000\.png: the mask has colours"):
        build_scene_manifests(scene_spec(), scene_machine(root))
    assert len(looked) < 8  # one or two but for a very busy machine


def test_unreadable_scenes_are_left_out_and_recorded(
    root: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    image(root, 1).write_bytes(image(root, 1).read_bytes()[:200])
    mask(root, 5).write_bytes(b"")
    with caplog.at_level(logging.WARNING):
        manifest = write_scene_manifests(tmp_path, root)["train"]
    assert len(manifest) == 6
    assert "scene_001.png: the scene cannot be decoded (OSError" in caplog.text
    assert "scene_005.png: the scene cannot be decoded (its mask: UnidentifiedImageError" in caplog.text
    listed = json.loads((tmp_path / "manifest.done").read_text())["splits"]["train"]["unreadable"]
    assert [path for path, _ in listed] == ["scene_001.png", "scene_005.png"]
    assert load_scene_manifest(tmp_path, "train").unreadable == manifest.unreadable
    machine = scene_machine(root)
    machine["scenes"]["on_unreadable"] = "fail"
    with pytest.raises(DataError, match=r"scene_001\.png: the scene cannot be decoded .*on_unreadable: record"):
        build_scene_manifests(scene_spec(), machine)
    mask(root, 6).write_bytes(b"")
    with pytest.raises(DataError, match=r"split train: 3 of 8 scenes cannot be decoded, more than the 2"):
        build_scene_manifests(scene_spec(), scene_machine(root))


def test_an_empty_class_is_named(root: Path, caplog: pytest.LogCaptureFixture) -> None:
    for folder in (root / "annotations" / "training", root / "annotations" / "validation"):
        for path in folder.iterdir():
            ids = np.array(Image.open(path))
            ids[ids == 2] = 1
            Image.fromarray(ids).save(path)
    with caplog.at_level(logging.INFO):
        manifests = build_scene_manifests(scene_spec(), scene_machine(root))
    assert manifests["train"].class_pixels[1] == 0
    assert [record.message for record in caplog.records if record.levelno == logging.WARNING] == [
        "train: no pixel of class sky; it cannot be learned"
    ]
    assert "val: no pixel of class sky; it is not counted in the mean over classes" in caplog.text


def test_a_scene_of_ignored_pixels_stays_and_is_counted(root: Path, caplog: pytest.LogCaptureFixture) -> None:
    Image.new("L", (56, 40), 0).save(mask(root))
    manifest = build_scene_manifests(scene_spec(), scene_machine(root))["train"]
    assert len(manifest) == 8
    assert "train: 1 scene(s) of ignored pixels only" in caplog.text


def test_what_changed_since_the_manifest_is_refused(root: Path, tmp_path: Path) -> None:
    manifest = write_scene_manifests(tmp_path, root)["train"]
    scenes = manifest.open(scene_machine(root))
    mask(root).write_bytes(mask(root).read_bytes() + b"\0")
    with pytest.raises(
        DataError, match=r"training/scene_003\.png: \d+ bytes, the manifest says \d+; the file has changed"
    ):
        scenes.read(3)
    image(root, 2).unlink()
    with pytest.raises(
        DataError, match=r"scene_002\.png: the file is gone since the manifest was made.*results/scenes"
    ):
        scenes.read(2)
    damaged = bytearray(image(root, 1).read_bytes())
    damaged[200:400] = bytes(200)
    image(root, 1).write_bytes(damaged)
    with pytest.raises(UnreadableImageError):
        scenes.read(1)


def test_a_manifest_that_is_missing_or_damaged(drawn: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"the scenes' manifest is missing"):
        load_scene_manifest(tmp_path, "train")
    write_scene_manifests(tmp_path, drawn)
    written = (tmp_path / "train.npz").read_bytes()
    for damaged in (b"PK rubbish", b"", written[: len(written) // 2], written.replace(b"s\0\0\0c", b"s\0\0\0k")):
        (tmp_path / "val.npz").write_bytes(damaged)
        with pytest.raises(DataError, match=r"val\.npz: damaged manifest of scenes"):
            load_scene_manifest(tmp_path, "val")


def test_the_command(drawn: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_json(tmp_path / "spec.json", scene_spec())
    machine: dict[str, Any] = scene_machine(drawn)
    write_json(tmp_path / "machine.json", machine)
    words = ["data", "scenes", "--spec", str(tmp_path / "spec.json"), "--machine", str(tmp_path / "machine.json")]
    assert main([*words, "--done", str(tmp_path / "out" / "manifest.done"), "--log", str(tmp_path / "log")]) == 0
    marker = json.loads((tmp_path / "out" / "manifest.done").read_text())
    assert marker["splits"]["train"]["images"] == 8
    assert sum(marker["splits"]["train"]["class_pixels"]) == 8 * 40 * 54  # two of 56 columns are ignored
    assert "train: 8 scenes, 0 left out" in (tmp_path / "log").read_text()
    write_json(tmp_path / "spec.json", scene_spec(num_classes=4))
    assert main([*words, "--done", str(tmp_path / "other" / "manifest.done")]) == 2
    assert "3 classes (without the ignored id 0), but segmentation.dataset.num_classes is 4" in capsys.readouterr().err
    assert not (tmp_path / "other" / "manifest.done").exists()
