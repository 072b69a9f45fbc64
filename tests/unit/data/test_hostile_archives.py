"""Tar files that were made to harm: nothing is written, nothing outside is read, and no listing goes on without end."""

from __future__ import annotations

import io
import os
import tarfile
from collections.abc import Callable
from pathlib import Path

import pytest

from tokenlabel.core.errors import DataError, LabelError
from tokenlabel.data.archives import list_tars
from tokenlabel.data.readers import ByteSource, list_entries
from tokenlabel.labels.released import ReleasedTree

SECRET = b"secret of another user"
Change = Callable[[tarfile.TarInfo, Path], None]


def _link(kind: bytes, target: str) -> Change:
    def change(member: tarfile.TarInfo, outside: Path) -> None:
        member.type, member.linkname, member.size = kind, target.format(outside=outside), 0

    return change


def _device(kind: bytes) -> Change:
    def change(member: tarfile.TarInfo, outside: Path) -> None:
        member.type, member.devmajor, member.devminor, member.size = kind, 1, 5, 0  # /dev/zero

    return change


NO_PHOTOGRAPHS: dict[str, Change] = {
    "link to a file": _link(tarfile.SYMTYPE, "{outside}"),
    "link upwards": _link(tarfile.SYMTYPE, "../../outside.jpg"),
    "hard link": _link(tarfile.LNKTYPE, "../outside.jpg"),
    "character device": _device(tarfile.CHRTYPE),
    "block device": _device(tarfile.BLKTYPE),
    "pipe": _device(tarfile.FIFOTYPE),
}
NAMES_OUTSIDE = ["../../outside.jpg", "cat/../../outside.jpg", "cat/../../../etc/x.jpg", "../cat/x.jpg", ".././x/y.jpg"]


def add(archive: tarfile.TarFile, name: str, content: bytes = b"photograph") -> None:
    member = tarfile.TarInfo(name)
    member.size = len(content)
    archive.addfile(member, io.BytesIO(content))


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A data root beside a file that must stay unread and unchanged."""
    (tmp_path / "outside.jpg").write_bytes(SECRET)
    root = tmp_path / "root"
    root.mkdir()
    return root


def everything(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))


@pytest.mark.parametrize("kind", NO_PHOTOGRAPHS)
def test_links_and_devices_are_no_photographs(kind: str, root: Path) -> None:
    with tarfile.open(root / "train.tar", "w") as archive:
        add(archive, "cat/good.jpg")
        member = tarfile.TarInfo("cat/evil.jpg")
        NO_PHOTOGRAPHS[kind](member, root.parent / "outside.jpg")
        archive.addfile(member)
    before = everything(root.parent)
    listing = list_entries(root, "train.tar", "tar")
    assert [entry.path for entry in listing.entries] == ["cat/good.jpg"]
    (entry,) = listing.entries
    read = ByteSource(root, "train.tar", "tar", listing.archives).read(entry.path, entry.size_bytes, entry.offset)
    assert read == b"photograph"
    assert everything(root.parent) == before
    assert (root.parent / "outside.jpg").read_bytes() == SECRET


@pytest.mark.parametrize("name", NAMES_OUTSIDE)
def test_a_name_that_leads_out_is_refused(name: str, root: Path) -> None:
    with tarfile.open(root / "train.tar", "w") as archive:
        add(archive, "cat/good.jpg")
        add(archive, name)
    with pytest.raises(DataError, match="leads out of the data set") as refused:
        list_entries(root, "train.tar", "tar")
    assert "\n" not in str(refused.value)
    assert everything(root.parent) == ["outside.jpg", "root", "root/train.tar"]


def test_an_absolute_name_is_refused_or_inside(root: Path) -> None:
    with tarfile.open(root / "train.tar", "w") as archive:
        add(archive, "cat/good.jpg")
        add(archive, "/etc/evil.jpg")
    assert [entry.path for entry in list_tars(root, "train.tar", "").entries] == ["cat/good.jpg", "etc/evil.jpg"]


def test_names_inside_a_tar_inside_a_tar_are_looked_at_too(root: Path) -> None:
    inner = io.BytesIO()
    with tarfile.open(fileobj=inner, mode="w") as archive:
        add(archive, "../../outside.jpg")
    with tarfile.open(root / "train.tar", "w") as archive:
        add(archive, "cat.tar", inner.getvalue())
    with pytest.raises(DataError, match="leads out of the data set"):
        list_entries(root, "train.tar", "tar")


def test_a_webdataset_key_that_leads_out_is_refused(root: Path) -> None:
    with tarfile.open(root / "train-0.tar", "w") as archive:
        add(archive, "../../outside.jpg")
        add(archive, "../../outside.cls", b"1")
    with pytest.raises(DataError, match="leads out of the data set"):
        list_entries(root, "train-*.tar", "webdataset")


@pytest.mark.parametrize("label", [b"[" * 10**6, b"9" * 9999, b'{"label": [[1]]}', b'{"label": NaN}', b"\xff\xfe"])
def test_a_webdataset_label_that_misleads_is_refused(label: bytes, root: Path) -> None:
    with tarfile.open(root / "train-0.tar", "w") as archive:
        add(archive, "a.jpg")
        add(archive, "a.json", label)
    with pytest.raises(DataError):
        list_entries(root, "train-*.tar", "webdataset")


def test_a_webdataset_label_of_gigabytes_is_not_read(root: Path) -> None:
    path = root / "train-0.tar"
    with tarfile.open(path, "w") as archive:
        add(archive, "a.jpg")
        label = tarfile.TarInfo("a.json")
        label.size = 2**35
    with path.open("r+b") as file:  # a sparse file: what it promises is there, and takes no room
        file.seek(1024)
        file.write(label.tobuf())
        file.truncate(1536 + label.size + 1024)
    with pytest.raises(DataError, match=r"a\.json: 34,359,738,368 bytes, expected a label"):
        list_entries(root, "train-*.tar", "webdataset")


@pytest.mark.parametrize(
    "records", [{"GNU.sparse.map": "a,b"}, {"GNU.sparse.major": "1", "GNU.sparse.minor": "0"},
        {"size": "-1"}, {"path": "../../x.jpg"}]
)  # fmt: skip
def test_extended_headers_that_mislead_end_in_one_line(records: dict[str, str], root: Path) -> None:
    with tarfile.open(root / "train.tar", "w", format=tarfile.PAX_FORMAT) as archive:
        add(archive, "cat/0.jpg")
        member = tarfile.TarInfo("cat/1.jpg")
        member.pax_headers = records
        archive.addfile(member)
        add(archive, "cat/2.jpg")
    with pytest.raises(DataError) as refused:
        list_entries(root, "train.tar", "tar")
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize("size", [-1024, -512, -1, -(2**60), 2**60])
def test_an_extended_header_of_a_size_that_misleads(size: int, root: Path) -> None:
    with tarfile.open(root / "train.tar", "w", format=tarfile.PAX_FORMAT) as archive:
        add(archive, "cat/0.jpg")
        add(archive, f"cat/{'long' * 100}.jpg")  # is told in an extended header, the second one of the file
        add(archive, "cat/2.jpg")
    resized(root / "train.tar", size)
    with pytest.raises(DataError) as refused:
        list_entries(root, "train.tar", "tar")
    assert "\n" not in str(refused.value)


def resized(path: Path, size: int) -> None:
    """Changes the second member's size in its header, base-256 as GNU tar writes numbers that do not fit, and its checksum."""
    content = bytearray(path.read_bytes())
    header = content[1024:1536]
    header[124:136] = (b"\xff" if size < 0 else b"\x80") + (size % 2**88).to_bytes(11, "big")
    header[148:156] = b" " * 8
    header[148:156] = f"{sum(header):06o}\0 ".encode()
    content[1024:1536] = header
    path.write_bytes(content)


@pytest.mark.parametrize("size", [-1024, -512, -1, -(2**60), 2**60, 2**40])
def test_sizes_that_mislead_end_in_one_line(size: int, root: Path) -> None:
    """A negative size takes tarfile back to a member that it has been at, without end."""
    with tarfile.open(root / "train.tar", "w") as archive:
        for number in range(4):
            add(archive, f"cat/{number}.jpg")
    resized(root / "train.tar", size)
    with pytest.raises(DataError, match=r"train\.tar") as refused:
        list_entries(root, "train.tar", "tar")
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize("size", [-1024, -512, -1, -(2**60), 2**60, 2**40])
def test_sizes_that_mislead_in_an_archive_of_labels_too(size: int, root: Path) -> None:
    with tarfile.open(root / "labels.tar", "w") as archive:
        for number in range(4):
            add(archive, f"cat/{number}.pt")
    resized(root / "labels.tar", size)
    with pytest.raises(LabelError, match=r"labels\.tar"):
        ReleasedTree(root / "labels.tar").read("cat/1.pt")


def test_an_archive_of_labels_is_never_unpacked(root: Path) -> None:
    with tarfile.open(root / "labels.tar", "w") as archive:
        for name in ("../../outside.jpg", "/etc/evil.pt", "../../cat/a.pt"):
            add(archive, name, b"label")
        for kind, change in NO_PHOTOGRAPHS.items():
            member = tarfile.TarInfo(f"dog/{kind}.pt")
            change(member, root.parent / "outside.jpg")
            archive.addfile(member)
    tree = ReleasedTree(root / "labels.tar")
    assert tree.read("cat/a.pt") == b"label"
    assert not any(f"dog/{kind}.pt" in tree for kind in NO_PHOTOGRAPHS)
    assert everything(root.parent) == ["outside.jpg", "root", "root/labels.tar"]


def test_links_in_a_folder_never_make_a_walk_without_end(root: Path) -> None:
    (root / "train" / "cat").mkdir(parents=True)
    (root / "train" / "cat" / "a.jpg").write_bytes(b"photograph")
    (root / "train" / "cat" / "up").symlink_to("..")
    (root / "train" / "cat" / "self").symlink_to("self")
    os.mkfifo(root / "train" / "cat" / "pipe.jpg")
    listing = list_entries(root, "train", "folder")
    assert {entry.path: entry.size_bytes for entry in listing.entries}["cat/pipe.jpg"] == -1
    assert len(listing.entries) < 10
