"""The shard format: what goes in comes out, and damage is found and named."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

from tokenlabel.core.errors import LabelError
from tokenlabel.labels.records import layout_of
from tokenlabel.labels.shards import (
    STATUS_PENDING,
    LabelRows,
    ShardFile,
    ShardSummary,
    assemble_parts,
    marker_path,
    read_attributes,
    read_marker,
    read_part,
    shard_file_name,
    verify_shard,
    write_part,
)

from .conftest import COLS, ROWS, K, make_attributes, make_rows, rewrite_rows, spoil, take, write_shard


def assert_same(found: LabelRows, expected: LabelRows) -> None:
    for name in ("sample_id", "scores", "classes", "tail", "image_size", "status"):
        got, wanted = getattr(found, name), getattr(expected, name)
        if wanted is None:
            assert got is None
        else:
            np.testing.assert_array_equal(got, wanted)
            assert got.dtype == wanted.dtype
    assert found.reason == expected.reason


def test_file_names() -> None:
    assert shard_file_name("train", 3, 64) == "train-00003-of-00064.h5"
    assert marker_path(Path("a/train-00003-of-00064.h5")) == Path("a/train-00003-of-00064.done")
    assert shard_file_name("val", 0, 1, ".done") == "val-00000-of-00001.done"


@pytest.mark.parametrize("tail", [False, True])
@pytest.mark.parametrize("num_classes", [10, 65536, 65537])
def test_part_round_trip(tmp_path: Path, tail: bool, num_classes: int) -> None:
    rows = make_rows([5, 2**64 - 1, 7], num_classes=num_classes, tail=tail)
    spoil(rows, 1, "truncated file: ünreadable")
    write_part(tmp_path / "part.h5", rows)
    assert_same(read_part(tmp_path / "part.h5"), rows)


@pytest.mark.parametrize("spoiled", [np.inf, np.nan, 7e4])
def test_scores_that_float16_cannot_hold(tmp_path: Path, spoiled: float) -> None:
    rows = make_rows([1, 2])
    rows.scores = rows.scores.astype(np.float32)  # type: ignore[assignment]
    rows.scores[1, 0, 0, 0] = spoiled
    with pytest.raises(LabelError, match="sample 0x0000000000000002 has scores that are not finite"):
        write_part(tmp_path / "part.h5", rows)
    assert not list(tmp_path.iterdir())
    spoil(rows, 1, "damaged")
    rows.scores[1, 0, 0, 0] = spoiled
    write_part(tmp_path / "part.h5", rows)  # what an unreadable photograph holds does not matter


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"reason": ["", ""]}, "2 reasons for 3"),
        ({"classes": np.zeros((3, ROWS, COLS, K + 1), np.uint16)}, "classes is"),
        ({"classes": np.zeros((3, ROWS, COLS, K), np.int64)}, "classes are int64"),
        ({"tail": np.zeros((3, COLS, ROWS), np.float16)}, "tail is"),
        ({"status": np.array([0, 1, 0])}, "unreadable without a reason"),
        ({"status": np.array([0, 3, 0])}, "status 3"),
    ],
)
def test_rows_that_do_not_fit(tmp_path: Path, change: dict[str, Any], message: str) -> None:
    rows = LabelRows(**vars(make_rows([1, 2, 3])) | change)
    with pytest.raises(LabelError, match=message):
        write_part(tmp_path / "part.h5", rows)


def write_parts(folder: Path, rows: LabelRows, groups: list[list[int]]) -> list[Path]:
    paths = []
    for number, group in enumerate(groups):
        paths.append(folder / f"part-{number:05d}.h5")
        write_part(paths[-1], take(rows, group))
    return paths


@pytest.mark.parametrize("tail", [False, True])
def test_assembly_orders_the_rows(tmp_path: Path, tail: bool) -> None:
    rows = make_rows([90, 10, 80, 20, 70, 30], tail=tail)
    spoil(rows, 2, "no")
    spoil(rows, 3, "")
    rows.status[3] = STATUS_PENDING
    parts = write_parts(tmp_path, rows, [[5, 0], [3, 2, 1], [4]])
    path = tmp_path / "train-00000-of-00001.h5"
    summary = assemble_parts(parts, path, make_attributes(), rows.sample_id)
    with h5py.File(path) as file:  # as somebody without our code reads it
        assert set(file) == {"records", "sample_id", "status", "reason"}
        np.testing.assert_array_equal(file["sample_id"][:], rows.sample_id)
        np.testing.assert_array_equal(file["status"][:], rows.status)
        assert [text.decode() for text in file["reason"][:]] == rows.reason
        records = file["records"]
        assert records.chunks == (1, records.shape[1])
        assert (records.compression, records.shuffle) == ("gzip", True)
        assert file.attrs["format_version"] == 1
        assert file.attrs["complete"]
        assert file.attrs["view"] == b"squash"
        assert json.loads(file.attrs["preprocessing"])["mean"] == [0.5, 0.5, 0.5]
    with ShardFile(path) as shard:
        assert_same(shard.rows(range(6)), rows)
        assert shard.layout.has_tail == tail
    assert (summary.images, summary.ok, summary.unreadable, summary.pending) == (6, 4, 1, 1)
    assert summary.size_bytes == path.stat().st_size
    assert read_attributes(path) == make_attributes()
    assert verify_shard(path, summary.sha256) == summary
    assert [file.name for file in tmp_path.iterdir() if not file.name.startswith("part")] == [path.name]


def test_many_classes_are_stored_in_32_bits(tmp_path: Path) -> None:
    rows = make_rows([1, 2], num_classes=70000)
    rows.classes[0, 0, 0] = [69999, 65536]
    path = write_shard(tmp_path, rows, num_classes=70000)
    verify_shard(path)
    with ShardFile(path) as shard:
        found = shard.rows(range(2)).classes
    assert found.dtype == np.uint32
    np.testing.assert_array_equal(found, rows.classes)


@pytest.mark.parametrize(
    ("groups", "expected", "message"),
    [
        ([[0, 1]], [90, 10, 80], "1 of 3 samples are in no part, the first is 0x0000000000000050"),
        ([[0, 1], [1, 2]], [90, 10, 80], "sample 0x000000000000000a is there twice"),
        ([[0, 1, 1, 2]], [90, 10, 80], "is there twice"),
        ([[0, 1, 2]], [90, 10], "sample 0x0000000000000050 does not belong"),
        ([[0, 1, 2]], [90, 10, 80, 80], "expected twice"),
    ],
    ids=["missing", "twice in two parts", "twice in one part", "foreign", "expected twice"],
)
def test_assembly_wants_exactly_the_expected(
    tmp_path: Path, groups: list[list[int]], expected: list[int], message: str
) -> None:
    parts = write_parts(tmp_path, make_rows([90, 10, 80]), groups)
    with pytest.raises(LabelError, match=message):
        assemble_parts(parts, tmp_path / "train-00000-of-00001.h5", make_attributes(), np.array(expected, np.uint64))
    assert sorted(tmp_path.iterdir()) == parts


@pytest.mark.parametrize(
    ("changes", "message"),
    [({"num_classes": 5}, "expected below 5"), ({"rows": COLS, "cols": ROWS}, "maps are"), ({"k": 1}, "maps are")],
)
def test_assembly_checks_against_the_attributes(tmp_path: Path, changes: dict[str, int], message: str) -> None:
    rows = make_rows([1, 2, 3])
    rows.classes[0, 0, 0] = [9, 8]
    parts = write_parts(tmp_path, rows, [[0, 1, 2]])
    with pytest.raises(LabelError, match=message):
        assemble_parts(parts, tmp_path / "x.h5", make_attributes(**changes), rows.sample_id)
    assert sorted(tmp_path.iterdir()) == parts


def test_parts_with_and_without_tail_do_not_mix(tmp_path: Path) -> None:
    write_part(tmp_path / "a.h5", make_rows([1]))
    write_part(tmp_path / "b.h5", make_rows([2], tail=False))
    with pytest.raises(LabelError, match="some parts have a tail"):
        assemble_parts(
            [tmp_path / "a.h5", tmp_path / "b.h5"], tmp_path / "x.h5", make_attributes(), np.array([1, 2], np.uint64)
        )


def test_empty_shard(tmp_path: Path) -> None:
    path = tmp_path / "train-00000-of-00001.h5"
    summary = assemble_parts([], path, make_attributes(), np.array([], np.uint64))
    assert summary.images == 0
    assert verify_shard(path, summary.sha256) == summary


def test_a_long_reason_is_cut_between_letters(tmp_path: Path) -> None:
    rows = make_rows([1])
    spoil(rows, 0, "ü" * 399)
    write_part(tmp_path / "part.h5", rows)
    assert read_part(tmp_path / "part.h5").reason == ["ü" * 200]


@pytest.mark.parametrize(("version", "remedy"), [(2, "update this one"), (0, "Delete it .*snakemake labels")])
def test_another_version_is_named_first(tmp_path: Path, version: int, remedy: str) -> None:
    path = write_shard(tmp_path, make_rows([1, 2]))
    with h5py.File(path, "r+") as file:
        file.attrs["format_version"] = version
        del file.attrs["annotator"]  # what another version may well have named otherwise
        del file["records"]
    with pytest.raises(LabelError, match=rf"shard {path}: format version {version}, this code reads 1\. .*{remedy}"):
        read_attributes(path)


def test_incomplete_file(tmp_path: Path) -> None:
    path = write_shard(tmp_path, make_rows([1, 2]))
    with h5py.File(path, "r+") as file:
        del file.attrs["complete"]
    with pytest.raises(LabelError, match=f"{path}: incomplete"):
        read_attributes(path)


@pytest.mark.parametrize("kept", [0, 10, 600, -1])
def test_truncated_file(tmp_path: Path, kept: int) -> None:
    path = write_shard(tmp_path, make_rows([1, 2]))
    path.write_bytes(path.read_bytes()[:kept])
    with pytest.raises(LabelError, match=rf"shard {path}: .*Delete it .*snakemake labels"):
        read_attributes(path)
    with pytest.raises(LabelError, match=str(path)):
        verify_shard(path)


def test_file_that_is_not_there_or_not_hdf5(tmp_path: Path) -> None:
    with pytest.raises(LabelError, match=r"missing\. Run snakemake labels"):
        read_attributes(tmp_path / "no.h5")
    with pytest.raises(LabelError, match=r"missing\. Run snakemake labels"):
        verify_shard(tmp_path / "no.h5")
    (tmp_path / "text.h5").write_text("photographs" * 1000)
    with pytest.raises(LabelError, match="not HDF5"):
        read_attributes(tmp_path / "text.h5")
    with h5py.File(tmp_path / "other.h5", "w"):
        pass
    with pytest.raises(LabelError, match="no format version"):
        read_attributes(tmp_path / "other.h5")


def test_every_flipped_bit_is_found_with_the_digest(tmp_path: Path) -> None:
    path = write_shard(tmp_path, make_rows([1, 2, 3]))
    whole, digest = path.read_bytes(), read_marker(path)["sha256"]
    verify_shard(path, digest)
    for position in range(0, len(whole), 37):
        spoiled = bytearray(whole)
        spoiled[position] ^= 1 << (position % 8)
        path.write_bytes(spoiled)
        with pytest.raises(LabelError, match=f"{path}: sha256"):
            verify_shard(path, digest)


@pytest.mark.parametrize("storage", ["compact", "fast"])
def test_flipped_bits_without_the_digest_are_found_or_change_nothing(tmp_path: Path, storage: str) -> None:
    rows = make_rows([1, 2, 3])
    path = write_shard(tmp_path, rows, storage=storage)
    whole = path.read_bytes()
    places = []
    with h5py.File(path) as file:
        for name in ("records", "status", "sample_id", "reason"):
            chunk = file[name].id.get_chunk_info(0)
            places += range(chunk.byte_offset, chunk.byte_offset + chunk.size, 3)
    found = 0
    for position in places:
        spoiled = bytearray(whole)
        spoiled[position] ^= 1 << (position % 8)
        path.write_bytes(spoiled)
        try:
            verify_shard(path)
        except LabelError:
            found += 1
        else:  # a bit that fills a byte up at the end of a zlib stream
            with ShardFile(path) as shard:
                assert_same(shard.rows(range(3)), rows)
    assert found >= 0.95 * len(places)


@pytest.mark.parametrize(
    ("name", "index", "value", "message"),
    [
        ("classes", (1, 0, 0), [10, 1], "class 10, expected below 10"),
        ("classes", (1, 0, 0), [1, 1], "class twice"),
        ("scores", (1, 0, 0), [1.0, 2.0], "not best first"),
        ("scores", (1, 0, 0), [np.inf, 2.0], "not finite"),
        ("tail", (1, 0, 0), np.nan, "not finite"),
        ("sample_id", 1, 7, "row 1 holds another sample id than its column"),
    ],
)
def test_verify_checks_the_records(tmp_path: Path, name: str, index: Any, value: Any, message: str) -> None:
    rows = make_rows([1, 2, 3])
    path = write_shard(tmp_path, rows)
    getattr(rows, name)[index] = value
    rewrite_rows(path, rows)
    with pytest.raises(LabelError, match=message):
        verify_shard(path)


@pytest.mark.parametrize(
    ("name", "index", "value", "message"),
    [
        ("sample_id", 1, 1, "sample id twice"),
        ("status", 1, 9, "status 9"),
        ("status", 1, 1, "without a reason"),
        ("records", (1, 8 + ROWS * COLS * K), ROWS * COLS * K, "index 24 into a vocabulary of 24"),
    ],
)
def test_verify_checks_the_columns(tmp_path: Path, name: str, index: Any, value: Any, message: str) -> None:
    path = write_shard(tmp_path, make_rows([1, 2, 3]))
    with h5py.File(path, "r+") as file:
        file[name][index] = value
    with pytest.raises(LabelError, match=message):
        verify_shard(path)


@pytest.mark.parametrize(("written", "wanted"), [("compact", "fast"), ("fast", "compact")])
def test_parts_of_the_other_storage_profile_are_taken_along(tmp_path: Path, written: str, wanted: str) -> None:
    rows = make_rows([1, 2, 3])
    write_part(tmp_path / "part.h5", rows, written)
    path = tmp_path / "train-00000-of-00001.h5"
    assemble_parts([tmp_path / "part.h5"], path, make_attributes(storage=wanted), rows.sample_id)
    verify_shard(path)
    with ShardFile(path) as shard:
        assert shard.layout.storage == wanted
        assert_same(shard.rows(range(3)), rows)


def test_ids_of_another_shard_are_refused(tmp_path: Path) -> None:
    path = write_shard(tmp_path, make_rows([0, 3, 5]), shard=0, total=3)
    with pytest.raises(LabelError, match=r"sample 0x0000000000000005 belongs into another shard than 0 of 3"):
        verify_shard(path)


WORDS = 8 + ROWS * COLS * (3 * K + 1)


@pytest.mark.parametrize(
    ("name", "shape", "dtype"),
    [
        ("records", (3, WORDS + 1), "<u2"),
        ("records", (3, WORDS), "<u4"),
        ("records", (3,), "<u2"),
        ("records", (3, WORDS), "<u2"),  # unchunked, so without a checksum
        ("status", None, None),
        ("reason", (2,), "S3"),
        ("reason", (3,), "S500"),
        ("sample_id", (3,), "<i8"),
    ],
)
def test_the_structure_is_checked(tmp_path: Path, name: str, shape: Any, dtype: Any) -> None:
    path = write_shard(tmp_path, make_rows([1, 2, 3]))
    with h5py.File(path, "r+") as file:
        del file[name]
        if shape is not None:
            file.create_dataset(name, shape=shape, dtype=dtype)
    with pytest.raises(LabelError, match=f"shard {path}: .*{name}"):
        verify_shard(path)


def test_texts_that_no_checksum_covers_are_refused(tmp_path: Path) -> None:
    path = write_shard(tmp_path, make_rows([1]))
    with h5py.File(path, "r+") as file:
        file.attrs["view"] = "squash"  # of variable length: HDF5 keeps it in a heap without a checksum
    with pytest.raises(LabelError, match=f"shard {path}: .*attribute view"):
        read_attributes(path)


def test_a_record_that_compression_cannot_shrink_keeps_its_checksum(tmp_path: Path) -> None:
    rows = make_rows([1], tail=True)  # 24 random scores: gzip makes them longer
    path = write_shard(tmp_path, rows)
    with h5py.File(path) as file:
        chunk = file["records"].id.get_chunk_info(0)
        assert chunk.filter_mask == 0
        np.testing.assert_array_equal(file["records"][0], layout_of(rows, "compact").pack(rows)[0])


def test_damaged_part(tmp_path: Path) -> None:
    path = tmp_path / "part.h5"
    write_part(path, make_rows([1, 2]))
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(LabelError, match=f"part {path}: damaged"):
        read_part(path)


@pytest.mark.parametrize("text", [None, "{", "[]", "{}", '{"sha256": 3}'])
def test_markers(tmp_path: Path, text: str | None) -> None:
    path = write_shard(tmp_path, make_rows([1]))
    assert read_marker(path) == read_marker(marker_path(path))
    assert read_marker(path)["images"] == 1
    marker_path(path).unlink()
    if text is not None:
        marker_path(path).write_text(text)
    with pytest.raises(LabelError, match=rf"marker {marker_path(path)}: .*snakemake labels"):
        read_marker(path)


@pytest.mark.parametrize(
    "change", [{"view": "crop"}, {"precision": "float32"}, {"k": 11}, {"shard": 1}, {"rows": 0}], ids=str
)
def test_attributes_are_checked(change: dict[str, Any]) -> None:
    with pytest.raises(LabelError, match=f"{next(iter(change)) if 'shard' not in change else 'number 1 of 1'}"):
        make_attributes(**change)


def test_summary_is_what_the_marker_needs() -> None:
    assert {"images", "unreadable", "size_bytes", "sha256"} <= set(ShardSummary.__dataclass_fields__)
