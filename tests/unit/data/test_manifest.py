"""The manifest: class order, splits, digests, and refusal of what does not fit."""

from __future__ import annotations

import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from tokenlabel.core.errors import ConfigError, DataError
from tokenlabel.core.files import write_json
from tokenlabel.core.seeds import sample_id
from tokenlabel.data.listing import Listing
from tokenlabel.data.manifest import build_manifests, class_names, load_manifest, save_manifests


def spec(**changes: Any) -> dict[str, Any]:
    return {
        "class_map": None,
        "num_classes": 3,
        "val_fraction": None,
        "val_seed": 0,
        "images": None,
        "shards": 2,
    } | changes


def machine(root: Path, **changes: Any) -> dict[str, Any]:
    return {
        "data_root": str(root),
        "dataset": {
            "format": "folder",
            "train": "train",
            "val": "val",
            "on_unreadable": "record",
            "max_unreadable_fraction": 0.5,
        }
        | changes,
    }


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for split, count in (("train", 6), ("val", 2)):
        for name in ("n10", "n2", "apple pie.v2"):
            for number in range(count):
                path = tmp_path / "data" / split / name / f"a.b.{number}.jpg"
                path.parent.mkdir(parents=True, exist_ok=True)
                Image.new("RGB", (8 + number, 8), (number, 0, 0)).save(path)
    return tmp_path / "data"


def test_class_order_is_lexicographic_not_natural(folder: Path) -> None:
    manifest = build_manifests(spec(), machine(folder))["train"]
    assert manifest.classes == ("apple pie.v2", "n10", "n2")
    for row in range(len(manifest)):
        assert manifest.classes[manifest.class_index[row]] == manifest.path(row).split("/")[0]
        assert manifest.sample_id[row] == sample_id(manifest.path(row))


def test_round_trip_and_shards(folder: Path, tmp_path: Path) -> None:
    made = build_manifests(spec(), machine(folder))
    write_json(tmp_path / "m" / "manifest.done", save_manifests(tmp_path / "m", made))
    read = load_manifest(tmp_path / "m", "train")
    assert len(read) == 18
    assert [read.path(row) for row in range(18)] == [made["train"].path(row) for row in range(18)]
    rows = np.concatenate([read.rows_of_shard(shard) for shard in (0, 1)])
    assert sorted(rows.tolist()) == list(range(18))
    assert read.shard_digests == made["train"].shard_digests
    encoded = read.read(read.open_source(machine(folder)), 3)
    assert encoded == (folder / "train" / read.path(3)).read_bytes()


@pytest.mark.parametrize("kept", [0, 200, 0.5], ids=["empty", "header", "half"])
def test_a_torn_manifest_is_refused_in_one_line(folder: Path, tmp_path: Path, kept: float) -> None:
    write_json(
        tmp_path / "m" / "manifest.done", save_manifests(tmp_path / "m", build_manifests(spec(), machine(folder)))
    )
    whole = (tmp_path / "m" / "train.npz").read_bytes()
    (tmp_path / "m" / "train.npz").write_bytes(whole[: int(kept * len(whole)) if 0 < kept < 1 else int(kept)])
    with pytest.raises(DataError, match=r"train\.npz: damaged manifest .*Delete .* and run snakemake again"):
        load_manifest(tmp_path / "m", "train")


def test_one_added_photograph_changes_one_shard(folder: Path) -> None:
    before = build_manifests(spec(shards=4), machine(folder))["train"].shard_digests
    Image.new("RGB", (9, 9)).save(folder / "train" / "n10" / "new.jpg")
    after = build_manifests(spec(shards=4), machine(folder))["train"].shard_digests
    assert sum(a != b for a, b in zip(before, after, strict=True)) == 1


@pytest.mark.parametrize("inner", [False, True], ids=["whole tar", "folder inside a tar"])
def test_a_tar_gives_the_same_ids_and_bytes(folder: Path, inner: bool) -> None:
    if inner:
        with tarfile.open(folder / "all.tar", "w") as archive:
            archive.add(folder / "train", "set/train")
            archive.add(folder / "val", "set/val")
        places = {"train": "all.tar:set/train", "val": "all.tar:set/val"}
    else:
        for split in ("train", "val"):
            with tarfile.open(folder / f"{split}.tar", "w") as archive:
                archive.add(folder / split, ".")
        places = {"train": "train.tar", "val": "val.tar"}
    from_folder = build_manifests(spec(), machine(folder))["train"]
    from_tar = build_manifests(spec(), machine(folder, format="tar", **places))["train"]
    assert from_tar.shard_digests == from_folder.shard_digests
    assert (from_tar.sample_id == from_folder.sample_id).all()
    source = from_tar.open_source(machine(folder, format="tar", **places))
    for row in (0, 7, 17):
        assert from_tar.read(source, row) == (folder / "train" / from_tar.path(row)).read_bytes()


def test_validation_is_split_off_per_class_and_by_seed(folder: Path) -> None:
    asked = spec(val_fraction=0.34)
    first = build_manifests(asked, machine(folder, val=None))
    train, val = ({m.path(r) for r in range(len(m))} for m in (first["train"], first["val"]))
    assert not train & val
    assert len(train | val) == 18
    assert np.bincount(first["val"].class_index).tolist() == [2, 2, 2]
    again = build_manifests(asked, machine(folder, val=None))
    assert {again["val"].path(r) for r in range(6)} == val
    other = build_manifests(spec(val_fraction=0.34, val_seed=1), machine(folder, val=None))
    assert {other["val"].path(r) for r in range(6)} != val


def test_a_cap_keeps_the_same_photographs(folder: Path) -> None:
    few, more = (build_manifests(spec(images=count), machine(folder))["train"] for count in (5, 9))
    assert (len(few), len(more)) == (5, 9)
    assert set(few.sample_id.tolist()) <= set(more.sample_id.tolist())


def test_class_map_file_and_imagenet(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "classes.txt").write_text("n2\nn10\napple pie.v2\n")
    manifest = build_manifests(spec(class_map=str(tmp_path / "classes.txt")), machine(folder))["train"]
    assert manifest.classes == ("n2", "n10", "apple pie.v2")
    with pytest.raises(DataError, match="no class of the data set"):
        build_manifests(spec(class_map="imagenet-1k", num_classes=1000), machine(folder))


def test_missing_and_empty_places_are_named(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"data_root .*nowhere: no such folder.*Set data_root"):
        build_manifests(spec(), machine(tmp_path / "nowhere"))
    with pytest.raises(DataError, match="no such folder"):
        build_manifests(spec(), machine(folder, val="validation"))
    with pytest.raises(ConfigError, match="num_classes is 4"):
        build_manifests(spec(num_classes=4), machine(folder))
    (folder / "train" / "n3").mkdir()
    with pytest.raises(DataError, match=r"train/n3: this class folder holds no image"):
        build_manifests(spec(num_classes=4), machine(folder))


@pytest.mark.parametrize("size", [0.5, 0.97])
def test_a_tar_that_was_cut_off_is_refused(folder: Path, size: float) -> None:
    whole = folder / "train.tar"
    with tarfile.open(whole, "w") as archive:
        archive.add(folder / "train", ".")
    whole.write_bytes(whole.read_bytes()[: int(whole.stat().st_size * size) // 512 * 512])
    if size > 0.9:  # only the closing blocks are gone
        with tarfile.open(whole) as archive:
            end = max(member.offset_data + (member.size + 511) // 512 * 512 for member in archive)
        whole.write_bytes(whole.read_bytes()[:end])
    with pytest.raises(DataError, match=r"train\.tar: (cut off|not an uncompressed tar)"):
        build_manifests(spec(), machine(folder, format="tar", train="train.tar", val="train.tar"))


def test_a_split_without_photographs_is_refused_at_once(tmp_path: Path) -> None:
    for name in ("a", "b", "c"):
        (tmp_path / "train" / name).mkdir(parents=True)
        Image.new("RGB", (8, 8)).save(tmp_path / "train" / name / "only.jpg")
    with pytest.raises(DataError, match=r"split val .* has no photograph.*two photographs"):
        build_manifests(spec(val_fraction=0.2), machine(tmp_path, val=None))


def test_a_file_name_that_is_not_utf8_is_named(folder: Path) -> None:
    import os

    with open(os.fsencode(folder / "train" / "n2") + b"/\xff.jpg", "wb") as file:
        file.write(b"x")
    with pytest.raises(DataError, match="not UTF-8"):
        build_manifests(spec(), machine(folder))


def test_a_split_whose_place_is_null_in_machine_json_is_named(folder: Path) -> None:
    manifest = build_manifests(spec(), machine(folder))["val"]
    with pytest.raises(
        DataError, match=r"machine settings: dataset\.val is null, and the manifest's split val lies there"
    ):
        manifest.open_source(machine(folder, val=None))


def test_a_changed_photograph_is_refused(folder: Path) -> None:
    manifest = build_manifests(spec(), machine(folder))["train"]
    source = manifest.open_source(machine(folder))
    path = folder / "train" / manifest.path(0)
    path.write_bytes(path.read_bytes() + b"x")
    with pytest.raises(DataError, match="has changed"):
        manifest.read(source, 0)
    path.unlink()
    with pytest.raises(DataError, match="is gone"):
        manifest.read(source, 0)


def test_ids_and_digests_are_what_they_have_always_been(tmp_path: Path) -> None:
    """Labels in the world refer to these numbers; a change here makes every shard stale."""
    for name, content in (("bee/é 1.JPG", b"x" * 12), ("ant/a.b.jpg", b"x" * 7), ("ant/jpg", b""), ("ant/.b.jpg", b"")):
        place = tmp_path / "train" / name
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_bytes(content)
    (tmp_path / "train" / "ant" / "gone.png").symlink_to("nowhere")
    manifest = build_manifests(spec(num_classes=2), machine(tmp_path, val="train"))["train"]
    assert [manifest.path(row) for row in range(len(manifest))] == ["ant/a.b.jpg", "ant/gone.png", "bee/é 1.JPG"]
    assert manifest.sample_id.tolist() == [0x5DB16ED5E67EDBA8, 0x1D437FFE704E9436, 0x4BAB257A280735AD]
    assert manifest.shard_digests == ("c03ddde8002e42faafbee89bf974747c", "7a2c5dbb30b6ba0db9a365466bf29bf3")


def test_two_photographs_with_one_id_are_refused(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tokenlabel.data.manifest.sample_id", lambda path: len(path))
    with pytest.raises(DataError, match="two photographs of split train have the same 64-bit id"):
        build_manifests(spec(), machine(folder))


def test_a_class_map_may_name_every_folder_that_there_can_be(tmp_path: Path) -> None:
    names = ["=1+1", " spaces ", "-rf", "a,b;c", "two\u2028lines", "$(touch pwned)", '"quoted"', "plain"]
    listing = Listing([], sorted(names))
    map_file = tmp_path / "$(touch pwned) map.txt"
    map_file.write_bytes("\r\n".join([*names[:-1], "  plain  ", "", "   "]).encode())
    assert class_names(str(map_file), listing, len(names)) == names
    map_file.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ConfigError, match="not UTF-8"):
        class_names(str(map_file), listing, 1)
