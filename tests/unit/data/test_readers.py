"""Every kind of data set is listed and read by offset or row: class folders, tars, WebDataset shards, Hugging Face's."""

from __future__ import annotations

import io
import json
import os
import pickle
import sys
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from tests.unit.data.test_manifest import machine, spec
from tokenlabel.core.errors import DataError
from tokenlabel.core.files import write_json
from tokenlabel.data.images import UnreadableImageError
from tokenlabel.data.manifest import Manifest, build_manifests, load_manifest, save_manifests
from tokenlabel.data.readers import ByteSource, list_entries, list_files

CLASSES = ("ant", "bee", "cat")


def picture(seed: int) -> bytes:
    out = io.BytesIO()
    Image.fromarray(np.random.default_rng(seed).integers(0, 256, (9, 11, 3), dtype=np.uint8)).save(out, "PNG")
    return out.getvalue()


PICTURES = {
    f"{name}/{number}.png": picture(10 * index + number) for index, name in enumerate(CLASSES) for number in range(3)
}


def add(archive: tarfile.TarFile, name: str, content: bytes) -> None:
    member = tarfile.TarInfo(name)
    member.size = len(content)
    archive.addfile(member, io.BytesIO(content))


def tar_of_class_tars(root: Path) -> dict[str, Any]:
    """As ImageNet's training photographs are distributed."""
    for split in ("train", "val"):
        with tarfile.open(root / f"{split}.tar", "w") as outer:
            for name in CLASSES:
                inner = io.BytesIO()
                with tarfile.open(fileobj=inner, mode="w") as archive:
                    for path, content in PICTURES.items():
                        if path.startswith(name):
                            add(archive, path.split("/")[1], content)
                add(outer, f"{name}.tar", inner.getvalue())
    return {"format": "tar", "train": "train.tar", "val": "val.tar"}


def folder_of_class_tars(root: Path) -> dict[str, Any]:
    for split in ("train", "val"):
        (root / split).mkdir()
        for name in CLASSES:
            with tarfile.open(root / split / f"{name}.tar", "w") as archive:
                for path, content in PICTURES.items():
                    if path.startswith(name):
                        add(archive, path.split("/")[1], content)
    return {"format": "tar", "train": "train", "val": "val"}


def webdataset(root: Path) -> dict[str, Any]:
    """Labels as numbers in .cls files in one shard, in .json files in the other."""
    for split in ("train", "val"):
        for shard, paths in enumerate((list(PICTURES)[:4], list(PICTURES)[4:])):
            with tarfile.open(root / f"{split}-{shard}.tar", "w") as archive:
                for path in paths:
                    name, base = path.split("/")
                    key, label = f"{name}_{base.split('.')[0]}", CLASSES.index(name)
                    label_file = ("cls", str(label)) if shard == 0 else ("json", json.dumps({"label": label}))
                    add(archive, f"{key}.{label_file[0]}", label_file[1].encode())
                    add(archive, f"{key}.png", PICTURES[path])
    return {"format": "webdataset", "train": "train-*.tar", "val": "val-*.tar"}


def huggingface(root: Path) -> dict[str, Any]:
    import datasets

    features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=list(CLASSES))})
    for split in ("train", "val"):
        rows = {
            "image": [{"bytes": content, "path": None} for content in PICTURES.values()],
            "label": [CLASSES.index(path.split("/")[0]) for path in PICTURES],
        }
        datasets.Dataset.from_dict(rows, features=features).save_to_disk(str(root / split))
    return {"format": "huggingface", "train": "train", "val": "val"}


@pytest.mark.parametrize("make", [tar_of_class_tars, folder_of_class_tars, webdataset, huggingface])
@pytest.mark.filterwarnings("ignore::DeprecationWarning:datasets.*", "ignore::FutureWarning:datasets.*")
def test_a_data_set_is_listed_and_read(make: Any, tmp_path: Path) -> None:
    settings = machine(tmp_path, **make(tmp_path))
    manifests = build_manifests(spec(), settings)
    write_json(tmp_path / "m" / "manifest.done", save_manifests(tmp_path / "m", manifests))
    manifest = load_manifest(tmp_path / "m", "train")
    assert len(manifest) == 9
    source = manifest.open_source(settings)
    copied = pickle.loads(pickle.dumps(source))
    found: dict[int, set[bytes]] = {}
    for row in range(9):
        content = manifest.read(source, row)
        assert content == manifest.read(copied, row)
        found.setdefault(int(manifest.class_index[row]), set()).add(content)
    for index, name in enumerate(CLASSES):
        assert found[index] == {content for path, content in PICTURES.items() if path.startswith(name)}
    if make is not webdataset:
        assert manifest.classes == CLASSES
    assert len(set(manifest.sample_id.tolist())) == 9


def test_a_class_map_names_numbered_labels(tmp_path: Path) -> None:
    settings = machine(tmp_path, **webdataset(tmp_path))
    assert build_manifests(spec(), settings)["train"].classes == ("0", "1", "2")
    (tmp_path / "classes.txt").write_text("ant\nbee\ncat\n")
    named = build_manifests(spec(class_map=str(tmp_path / "classes.txt")), settings)["train"]
    assert named.classes == CLASSES
    (tmp_path / "two.txt").write_text("ant\nbee\n")
    with pytest.raises(DataError, match="label 2, but the data set has 2 classes"):
        build_manifests(spec(class_map=str(tmp_path / "two.txt"), num_classes=2), settings)


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("a.png", picture(1), r"a\.png has no a\.cls and no a\.json"),
        ("a.json", b"{]", "not JSON"),
        ("a.json", b"{}", "no label; expected"),
        ("a.cls", b" ", "empty, expected the class"),
    ],
)
def test_bad_webdataset_samples_are_named(name: str, content: bytes, said: str, tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "s.tar", "w") as archive:
        add(archive, name, content)
    with pytest.raises(DataError, match=said) as caught:
        build_manifests(spec(), machine(tmp_path, format="webdataset", train="s.tar", val="s.tar"))
    assert "s.tar" in str(caught.value)


def test_without_the_package_datasets_a_line_says_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(Exception, match=r"pip install 'tokenlabel\[huggingface\]'"):
        build_manifests(spec(), machine(tmp_path, format="huggingface", train="a", val="b"))


@pytest.fixture
def odd_folder(tmp_path: Path) -> Path:
    """A class folder with what is no photograph but looks like one."""
    for split in ("train", "val"):
        for path, content in PICTURES.items():
            place = tmp_path / split / path
            place.parent.mkdir(parents=True, exist_ok=True)
            place.write_bytes(content)
    odd = tmp_path / "train" / "ant"
    (odd / "folder.jpg").mkdir()
    (odd / "folder.jpg" / "inside.png").write_bytes(picture(99))
    (odd / "dangling.jpg").symlink_to("nowhere.jpg")
    (odd / "empty.jpg").write_bytes(b"")
    (odd / "loop").symlink_to(odd, target_is_directory=True)
    (odd / "linked").symlink_to(tmp_path / "train" / "bee", target_is_directory=True)
    (odd / "notes.txt").write_text("no photograph")
    return tmp_path


def rows_of(manifest: Manifest) -> dict[str, int]:
    return {manifest.path(row): row for row in range(len(manifest))}


def test_odd_entries_are_listed_and_refused_when_read(odd_folder: Path) -> None:
    settings = machine(odd_folder)
    manifest = build_manifests(spec(), settings)["train"]
    rows = rows_of(manifest)
    assert {path for path in rows if path.startswith("ant/")} == {
        *(f"ant/{n}.png" for n in range(3)), "ant/folder.jpg", "ant/dangling.jpg", "ant/empty.jpg",
        *(f"ant/linked/{n}.png" for n in range(3)),
    }  # fmt: skip
    source = manifest.open_source(settings)
    for path, reason in (("folder.jpg", "a folder"), ("dangling.jpg", r"dangling link to nowhere\.jpg")):
        with pytest.raises(UnreadableImageError, match=reason):
            manifest.read(source, rows[f"ant/{path}"])
    assert manifest.read(source, rows["ant/empty.jpg"]) == b""


def test_a_file_without_permission_is_unreadable_and_one_that_is_gone_stops(
    odd_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = machine(odd_folder)
    manifest = build_manifests(spec(), settings)["train"]
    rows, source = rows_of(manifest), manifest.open_source(settings)
    real = Path.read_bytes

    def refusing(path: Path) -> bytes:  # root may read everything
        if path.name == "0.png":
            raise PermissionError(13, "Permission denied", str(path))
        if path.name == "1.png":
            raise OSError(5, "Input/output error", str(path))
        return real(path)

    monkeypatch.setattr(Path, "read_bytes", refusing)
    with pytest.raises(UnreadableImageError, match="no permission"):
        manifest.read(source, rows["bee/0.png"])
    with pytest.raises(UnreadableImageError, match="Input/output error"):
        manifest.read(source, rows["bee/1.png"])
    (odd_folder / "train" / "bee" / "2.png").unlink()
    with pytest.raises(DataError, match=r"bee/2\.png: the file is gone.*tokenlabel refresh"):
        manifest.read(source, rows["bee/2.png"])


def test_pipes_and_links_to_themselves_are_no_photographs(odd_folder: Path) -> None:
    import os

    odd = odd_folder / "train" / "bee"
    os.mkfifo(odd / "pipe.jpg")
    (odd / "itself.jpg").symlink_to("itself.jpg")
    (odd / "itself").symlink_to("itself")
    (odd / "endless.jpg").symlink_to("/dev/zero")
    settings = machine(odd_folder)
    manifest = build_manifests(spec(), settings)["train"]
    rows, source = rows_of(manifest), manifest.open_source(settings)
    for name, reason in (
        ("pipe.jpg", "no regular file"),
        ("endless.jpg", "no regular file"),
        ("itself.jpg", "link|read"),
    ):
        with pytest.raises(UnreadableImageError, match=reason):
            manifest.read(source, rows[f"bee/{name}"])


def test_files_are_listed_by_suffix_at_any_depth(tmp_path: Path) -> None:
    """Hidden files and folders are left out; a folder that links to one above it is entered once; names must be UTF-8."""
    for name in ("b/2.PNG", "b/deep/1.png", "a.png", "a.jpg", ".hidden/3.png", "b/._2.png"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(b"1234")
    (tmp_path / "b" / "round").symlink_to(tmp_path)
    (tmp_path / "gone.png").symlink_to(tmp_path / "nowhere")
    found = list_files(tmp_path, frozenset((".png",)))
    assert [(entry.path, entry.size_bytes) for entry in found] == [
        ("a.png", 4), ("b/2.PNG", 4), ("b/deep/1.png", 4), ("gone.png", -1),
    ]  # fmt: skip
    with pytest.raises(DataError, match=r"absent: no such folder"):
        list_files(tmp_path / "absent", frozenset((".png",)))
    (tmp_path / os.fsdecode(b"w\xe4nde.png")).write_bytes(b"")
    with pytest.raises(DataError, match=r"is not UTF-8, so it has no id"):
        list_files(tmp_path, frozenset((".png",)))


def test_more_archives_than_a_process_may_open(tmp_path: Path) -> None:
    """ImageNet-21k is 21,841 tar files; threads read while others make the source close what it used longest ago."""
    import resource
    from concurrent.futures import ThreadPoolExecutor

    (tmp_path / "train").mkdir()
    for number in range(300):
        with tarfile.open(tmp_path / "train" / f"n{number:03d}.tar", "w") as archive:
            member = tarfile.TarInfo("a.jpg")
            member.size = 10
            archive.addfile(member, io.BytesIO(f"{number:010d}".encode()))
    listing = list_entries(tmp_path, "train", "tar")
    source = ByteSource(tmp_path, "train", "tar", listing.archives)
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    opened = len(os.listdir("/proc/self/fd"))
    resource.setrlimit(resource.RLIMIT_NOFILE, (opened + 160, before[1]))
    try:
        with ThreadPoolExecutor(8) as pool:
            for _ in range(3):
                read = list(pool.map(lambda e: source.read(e.path, e.size_bytes, e.offset, e.archive), listing.entries))
                assert read == [f"{number:010d}".encode() for number in range(300)]
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)
    assert len(os.listdir("/proc/self/fd")) <= opened + 130
