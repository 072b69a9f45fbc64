"""`tokenlabel labels inspect|verify|merge|export`."""

from __future__ import annotations

import dataclasses
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tests.unit.labels.conftest import make_rows, paths_of, spoil, take, write_shard
from tokenlabel.cli import main
from tokenlabel.core.files import read_json, write_json
from tokenlabel.core.seeds import sample_id
from tokenlabel.data.manifest import Manifest, load_manifest
from tokenlabel.labels import LabelStore
from tokenlabel.labels.released import released_name
from tokenlabel.labels.shards import STATUS_PENDING, LabelRows, marker_path, read_attributes

Folder = Callable[..., tuple[Path, LabelRows]]
Output = pytest.CaptureFixture[str]


def write_manifest(folder: Path, paths: list[str], shards: int) -> Manifest:
    """A manifest of these photographs, of 7 bytes each; digests m0, m1... as in `label_folder`."""
    encoded = [path.encode() for path in paths]
    folder.mkdir(parents=True)
    np.savez(
        folder / "train.npz",
        sample_id=np.array([sample_id(path) for path in paths], dtype=np.uint64),
        class_index=np.zeros(len(paths), dtype=np.int32),
        size_bytes=np.full(len(paths), 7, dtype=np.int64),
        offset=np.full(len(paths), -1, dtype=np.int64),
        path_bytes=np.frombuffer(b"".join(encoded), dtype=np.uint8),
        path_ends=np.cumsum([len(path) for path in encoded], dtype=np.int64),
    )
    digests = [f"m{shard}" for shard in range(shards)]
    summary = {"classes": [f"c{index}" for index in range(10)]}
    write_json(folder / "manifest.done", summary | {"splits": {"train": {"source": "train", "shard_digests": digests}}})
    return load_manifest(folder, "train")


def refused(capsys: Output, *arguments: Any) -> str:
    """The one line that a refused command says."""
    assert main(["labels", *map(str, arguments)]) == 2
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1, lines
    return lines[0]


# --- inspect ---


def test_inspect_a_folder(label_folder: Folder, capsys: Output) -> None:
    folder, rows = label_folder()
    assert main(["labels", "inspect", str(folder)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == str(folder)
    assert "  annotator       lite0" in lines
    assert "  num_classes     10" in lines
    header = next(line for line in lines if line.startswith("  file"))
    counts = ["file", "images", "ok", "unreadable", "pending", "size_bytes", "bytes/image"]
    assert header.split() == [*counts, "manifest_digest"]
    table = [line.split() for line in lines if ".h5" in line][:3]
    assert [line[0] for line in table] == [f"train-0000{shard}-of-00003.h5" for shard in range(3)]
    assert sum(int(line[1]) for line in table) == len(rows)
    assert sum(int(line[3]) for line in table) == 1
    assert [line[7] for line in table] == ["m0", "m1", "m2"]
    whole = next(line.split() for line in lines if line.startswith("  all"))
    size_bytes = sum(path.stat().st_size for path in folder.glob("*.h5"))
    assert whole[1:] == ["20", "19", "1", "0", str(size_bytes), str(round(size_bytes / 20))]


def test_inspect_computes_statistics_of_readable_photographs(label_folder: Folder, capsys: Output) -> None:
    folder, rows = label_folder()
    assert main(["labels", "inspect", str(folder)]) == 0
    out = capsys.readouterr().out
    ok = take(rows, [index for index in range(20) if index != 5])
    best = ok.scores[..., 0].astype(np.float32)
    assert ok.tail is not None
    probabilities = np.exp(ok.scores.astype(np.float64)).sum(-1)
    mass = (probabilities / (probabilities + np.exp(ok.tail.astype(np.float64)))).mean()
    expected = [ok.scores.min(), *np.quantile(best, (0.05, 0.5, 0.95)), best.max()]
    distinct = np.median([len(np.unique(classes)) for classes in ok.classes])
    assert "statistics of 19 readable photographs" in out
    cells = next(line.split() for line in out.splitlines() if line.startswith("  all  ") and "." in line)
    assert cells == ["all", "19", *(f"{value:.2f}" for value in expected), f"{distinct:g}", f"{mass:.3f}"]
    counts = np.bincount(ok.classes[..., 0].ravel(), minlength=10)
    share = f"{100 * counts.max() / counts.sum():.1f} %"
    assert f"in most cells: {counts.argmax()} ({share})" in out


def test_inspect_looks_at_a_sample_of_a_large_shard(tmp_path: Path, capsys: Output) -> None:
    shard = write_shard(tmp_path, make_rows(list(range(300)), tail=False))
    assert main(["labels", "inspect", str(shard)]) == 0
    out = capsys.readouterr().out
    assert "statistics of 256 readable photographs, evenly spaced, at most 256 a shard" in out
    assert "no tail" in out


def test_inspect_a_shard_without_labels(tmp_path: Path, capsys: Output) -> None:
    rows = make_rows([1], tail=False)
    spoil(rows, 0, "truncated")
    assert main(["labels", "inspect", str(write_shard(tmp_path, rows))]) == 0
    assert "no readable photograph" in capsys.readouterr().out


def test_inspect_a_file(label_folder: Folder, capsys: Output) -> None:
    shard = label_folder()[0] / "train-00001-of-00003.h5"
    assert main(["labels", "inspect", str(shard)]) == 0
    out = capsys.readouterr().out
    assert "manifest_digest  m1" in out
    assert out.count(".h5") == 2  # counts and statistics
    assert "  all" not in out


def test_inspect_what_is_no_shard(tmp_path: Path, capsys: Output) -> None:
    (tmp_path / "x.h5").write_text("x")
    assert main(["labels", "inspect", str(tmp_path / "x.h5")]) == 2
    assert f"error: shard {tmp_path / 'x.h5'}: damaged" in capsys.readouterr().err
    assert main(["labels", "inspect", str(tmp_path)]) == 2
    assert "no shards there" in capsys.readouterr().err


# --- verify ---


def test_verify_goes_on_after_a_bad_shard(label_folder: Folder, capsys: Output) -> None:
    folder, _ = label_folder()
    assert main(["labels", "verify", str(folder)]) == 0
    out = capsys.readouterr().out
    assert [line[:2] for line in out.splitlines()[:3]] == ["ok"] * 3
    assert out.count("as its marker says") == 3
    assert "3 checked: 3 ok, none bad; the good ones hold 20 images, 1 unreadable" in out.splitlines()[-1]
    shard = folder / "train-00001-of-00003.h5"
    content = bytearray(shard.read_bytes())
    content[len(content) // 2] ^= 1
    shard.write_bytes(content)
    assert main(["labels", "verify", str(folder), str(folder / "none")]) == 1
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == ["ok", "BAD", "ok", "BAD", "4"]
    assert f"shard {shard}: sha256" in lines[1]
    assert f"shard {folder / 'none'}: missing" in lines[3]
    assert lines[4].startswith("4 checked: 2 ok, 2 BAD")


@pytest.mark.parametrize("fault", ["truncated", "a bit of the first bytes", "a bit of the last bytes"])
def test_verify_finds_damage(label_folder: Folder, capsys: Output, fault: str) -> None:
    folder, _ = label_folder()
    shard = folder / "train-00002-of-00003.h5"
    content = bytearray(shard.read_bytes())
    if fault == "truncated":
        content = content[:-100]
    else:
        content[40 if "first" in fault else -1] ^= 4
    shard.write_bytes(content)
    assert main(["labels", "verify", str(folder)]) == 1
    assert "BAD  shard" in capsys.readouterr().out


def test_verify_finds_fewer_rows_than_the_marker_says(label_folder: Folder, capsys: Output) -> None:
    folder, _ = label_folder()
    done = marker_path(folder / "train-00000-of-00003.h5")
    write_json(done, read_json(done) | {"images": 500})
    assert main(["labels", "verify", str(folder)]) == 1
    assert "its marker says 500" in capsys.readouterr().out


def test_verify_compares_with_the_manifest(label_folder: Folder, tmp_path: Path, capsys: Output) -> None:
    folder, _ = label_folder()
    write_manifest(tmp_path / "same", paths_of(20), 3)
    assert main(["labels", "verify", str(folder), "--manifest", str(tmp_path / "same")]) == 0
    assert capsys.readouterr().out.count("photographs as in the manifest") == 3
    added = next(f"class0/new{index}.JPEG" for index in range(99) if sample_id(f"class0/new{index}.JPEG") % 3 == 1)
    gone = next(path for path in paths_of(20) if sample_id(path) % 3 == 2)
    write_manifest(tmp_path / "other", sorted({*paths_of(20), added} - {gone}), 3)
    assert main(["labels", "verify", str(folder), "--manifest", str(tmp_path / "other")]) == 1
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == ["ok", "BAD", "BAD", "3"]
    assert f"no row for {added}" in lines[1]
    assert f"rows of no photograph of it: {sample_id(gone):#018x}" in lines[2]
    summary = read_json(tmp_path / "same" / "manifest.done")
    summary["splits"]["train"]["shard_digests"][1] = "changed"
    write_json(tmp_path / "same" / "manifest.done", summary)
    assert main(["labels", "verify", str(folder), "--manifest", str(tmp_path / "same")]) == 1
    assert "photographs of other sizes" in capsys.readouterr().out


@pytest.mark.parametrize(
    "key", ["labels_digest", "manifest_digest", "size_bytes", "images", "unreadable", "weights_sha256"]
)
def test_verify_compares_the_marker(label_folder: Folder, capsys: Output, key: str) -> None:
    folder, _ = label_folder()
    marker = marker_path(folder / "train-00001-of-00003.h5")
    write_json(marker, read_json(marker) | {key: 77})
    assert main(["labels", "verify", str(folder)]) == 1
    assert f"{key} is" in capsys.readouterr().out


def test_verify_sees_a_shard_under_another_ones_name(label_folder: Folder, capsys: Output) -> None:
    folder, _ = label_folder()
    for suffix in (".h5", ".done"):
        shutil.copy(folder / f"train-00000-of-00003{suffix}", folder / f"train-00001-of-00003{suffix}")
    assert main(["labels", "verify", str(folder)]) == 1
    assert "was written as train-00000-of-00003.h5, its name is wrong" in capsys.readouterr().out


def test_verify_sees_shards_that_do_not_belong_together(label_folder: Folder, capsys: Output) -> None:
    folder, rows = label_folder()
    mine = rows.take(np.flatnonzero(rows.sample_id % np.uint64(3) == 1))
    write_shard(folder, mine, shard=1, total=3, annotator="lite1")
    assert main(["labels", "verify", str(folder)]) == 1
    assert "annotator is lite1, but lite0" in capsys.readouterr().out


def test_verify_without_marker_and_with_a_gap(label_folder: Folder, capsys: Output) -> None:
    folder, _ = label_folder()
    first = folder / "train-00000-of-00003.h5"
    marker = marker_path(first).read_bytes()
    marker_path(first).unlink()
    assert main(["labels", "verify", str(first)]) == 1
    assert "train-00000-of-00003.done: missing, the shard was not finished" in capsys.readouterr().out
    marker_path(first).write_bytes(marker)
    (folder / "train-00002-of-00003.h5").unlink()
    assert main(["labels", "verify", str(folder)]) == 1
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == ["ok", "ok", "BAD", "3"]
    assert "train-00002-of-00003.h5: missing" in lines[2]


def test_verify_an_empty_folder(tmp_path: Path, capsys: Output) -> None:
    assert main(["labels", "verify", str(tmp_path)]) == 1
    assert "no shards there" in capsys.readouterr().out


# --- merge ---


def assert_holds(folder: Path, rows: LabelRows) -> None:
    """The store gives exactly these rows."""
    store = LabelStore(folder, "train")
    batch = store.get_many(rows.sample_id)
    assert len(store) == len(rows)
    for field in dataclasses.fields(rows):
        np.testing.assert_array_equal(getattr(batch, field.name), getattr(rows, field.name), err_msg=field.name)


@pytest.mark.parametrize("tail", [True, False])
@pytest.mark.parametrize("shards", [1, 11])
def test_merge_cuts_labels_into_another_number_of_shards(
    label_folder: Folder, tmp_path: Path, shards: int, tail: bool
) -> None:
    folder, rows = label_folder(tail=tail)
    out = tmp_path / "out"
    assert main(["labels", "merge", str(folder), "--out", str(out), "--shards", str(shards)]) == 0
    assert_holds(out, rows)
    assert main(["labels", "verify", str(out)]) == 0
    assert sorted(path.name for path in out.iterdir() if path.suffix not in (".h5", ".done")) == []
    assert len(list(out.glob("*.h5"))) == shards
    ids = LabelStore(out, "train").ids
    for path in out.glob("*.h5"):
        attributes = read_attributes(path)
        assert attributes.total == shards
        assert read_json(marker_path(path))["images"] == (ids % np.uint64(shards) == attributes.shard).sum()


def test_merge_changes_the_storage_profile_and_no_number(label_folder: Folder, tmp_path: Path) -> None:
    folder, rows = label_folder()
    out = tmp_path / "out"
    assert main(["labels", "merge", str(folder), "--out", str(out), "--storage", "fast"]) == 0
    store = LabelStore(out, "train", manifest_digests=["m0", "m1", "m2"])
    assert store.attributes.storage == "fast"
    np.testing.assert_array_equal(store.get_many(rows.sample_id).scores, rows.scores)


def test_merge_of_two_halves_keeps_the_manifests_digests(label_folder: Folder, tmp_path: Path, capsys: Output) -> None:
    folder, rows = label_folder()
    for shard, half in enumerate(("a", "b", "b")):
        for suffix in (".h5", ".done"):
            (tmp_path / half).mkdir(exist_ok=True)
            path = folder / f"train-0000{shard}-of-00003{suffix}"
            path.rename(tmp_path / half / path.name)
    out = tmp_path / "out"
    sources = [tmp_path / "a", tmp_path / "b", tmp_path / "b" / "train-00001-of-00003.h5"]  # the last one twice
    assert main(["labels", "merge", *map(str, sources), "--out", str(out)]) == 0
    assert_holds(out, rows)
    assert [read_attributes(path).manifest_digest for path in sorted(out.glob("*.h5"))] == ["m0", "m1", "m2"]
    assert "training refuses" not in capsys.readouterr().out


def test_merge_takes_digests_and_order_from_a_manifest(label_folder: Folder, tmp_path: Path, capsys: Output) -> None:
    folder, rows = label_folder()
    manifest = write_manifest(tmp_path / "manifest", sorted(paths_of(20)), 4)
    out = tmp_path / "out"
    assert main(["labels", "merge", str(folder), "--out", str(out), "--manifest", str(tmp_path / "manifest")]) == 0
    assert_holds(out, rows)
    assert main(["labels", "verify", str(out), "--manifest", str(tmp_path / "manifest")]) == 0
    assert [read_json(path)["manifest_digest"] for path in sorted(out.glob("*.done"))] == ["m0", "m1", "m2", "m3"]
    assert len(manifest.shard_digests) == 4
    capsys.readouterr()
    common = ("merge", folder, "--out", tmp_path / "x", "--manifest")
    write_manifest(tmp_path / "more", [*paths_of(20), "class0/new.JPEG"], 3)
    assert "no source has a row for class0/new.JPEG" in refused(capsys, *common, tmp_path / "more")
    write_manifest(tmp_path / "fewer", paths_of(19), 3)
    foreign = f"samples {sample_id(paths_of(20)[-1]):#018x} are no photographs"
    assert foreign in refused(capsys, *common, tmp_path / "fewer")
    assert "--shards 5: the manifest has 3" in refused(capsys, *common, tmp_path / "fewer", "--shards", 5)
    assert not (tmp_path / "x").exists()


def test_merge_says_when_training_will_refuse(label_folder: Folder, tmp_path: Path, capsys: Output) -> None:
    folder, _ = label_folder()
    assert main(["labels", "merge", str(folder), "--out", str(tmp_path / "out"), "--shards", "2"]) == 0
    assert "2 of the shards say which ids" in capsys.readouterr().out
    digests = {read_attributes(path).manifest_digest for path in (tmp_path / "out").glob("*.h5")}
    assert len(digests) == 2
    assert all(digest.startswith("ids:") for digest in digests)


def test_merge_lets_a_label_replace_an_unreadable_or_pending_row(tmp_path: Path, capsys: Output) -> None:
    rows = make_rows([1, 2, 3, 4])
    earlier = take(rows, [0, 1, 2, 3])
    spoil(earlier, 1, "truncated")
    spoil(earlier, 3, "gone")
    earlier.status[3] = STATUS_PENDING
    later = take(rows, [0, 1, 3])
    spoil(later, 0, "network")  # must not win over the label of 1
    write_shard(tmp_path / "a", earlier)
    write_shard(tmp_path / "b", later)
    for order in (("a", "b"), ("b", "a")):
        out = tmp_path / "".join(order)
        assert main(["labels", "merge", *(str(tmp_path / name) for name in order), "--out", str(out)]) == 0
        assert_holds(out, rows)
        assert "0 repeated rows left out, 3 unreadable or pending ones replaced" in capsys.readouterr().out


@pytest.mark.parametrize("part", ["scores", "classes", "tail"])
def test_merge_keeps_equal_labels_once_and_refuses_contradictions(tmp_path: Path, capsys: Output, part: str) -> None:
    rows = make_rows(list(range(10)))
    write_shard(tmp_path / "a", rows)
    write_shard(tmp_path / "b", take(rows, [9, 4, 2]))
    out = tmp_path / "out"
    assert main(["labels", "merge", str(tmp_path / "a"), str(tmp_path / "b"), "--out", str(out)]) == 0
    assert "3 repeated rows left out" in capsys.readouterr().out
    assert_holds(out, rows)
    other = take(rows, [9, 4, 2])
    values = getattr(other, part)
    values[1, 2, 3] = values[1, 2, 3][::-1] if part == "classes" else values[1, 2, 3] + 1
    write_shard(tmp_path / "c", other)
    line = refused(capsys, "merge", tmp_path / "a", tmp_path / "c", "--out", tmp_path / "no")
    assert f"sample {4:#018x}: " in line
    assert "hold different labels of it" in line
    assert not (tmp_path / "no").exists()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"weights_sha256": "cd" * 32}, f"weights_sha256 is {'cd' * 32}, but {'ab' * 32} in"),
        ({"view": "centre_crop"}, "view is centre_crop, but squash in"),
        ({"labels_digest": "other"}, "labels_digest is other, but spec in"),
        ({"split": "val"}, "is of split 'val', to be merged is 'train'"),
    ],
)
def test_merge_refuses_labels_of_other_makings(
    tmp_path: Path, capsys: Output, changes: dict[str, Any], message: str
) -> None:
    one = write_shard(tmp_path / "a", make_rows([1, 2]))
    other = write_shard(tmp_path / "b", make_rows([3, 4]), **changes)
    line = refused(capsys, "merge", one, other, "--out", tmp_path / "out")
    assert message in line
    assert str(other) in line


def test_merge_refuses_what_it_cannot_do(label_folder: Folder, tmp_path: Path, capsys: Output) -> None:
    folder, _ = label_folder()
    assert "holds shards of split 'train' already" in refused(capsys, "merge", folder, "--out", folder)
    assert "no shards of split 'val' there" in refused(
        capsys, "merge", folder, "--split", "val", "--out", tmp_path / "x"
    )
    assert "damaged" in refused(capsys, "merge", Path(__file__), "--out", tmp_path / "x")
    assert "none: missing" in refused(capsys, "merge", tmp_path / "none", "--out", tmp_path / "x")
    assert "--shards 0: expected at least 1" in refused(
        capsys, "merge", folder, "--out", tmp_path / "x", "--shards", "0"
    )
    without_tail = write_shard(tmp_path / "b", make_rows([3, 4], tail=False), labels_digest="spec")
    assert "has no tail, but" in refused(capsys, "merge", folder, without_tail, "--out", tmp_path / "x")


# --- export ---


def square_rows(ids: list[int], side: int, seed: int = 0) -> LabelRows:
    rows = make_rows(ids, seed=seed, tail=False)
    rng = np.random.default_rng(seed)
    shape = (len(ids), side, side, 2)
    first = rng.integers(0, 10, shape[:3])
    return dataclasses.replace(
        rows,
        scores=-np.sort(-rng.normal(3, 2, shape), axis=-1).astype(np.float16),
        classes=np.stack([first, (first + 1) % 10], axis=-1).astype(np.uint16),
    )


@pytest.mark.parametrize("axes", ["right", "released"])
def test_export_has_the_axes_that_were_asked_for(tmp_path: Path, capsys: Output, axes: str) -> None:
    paths = [f"class{index % 3}/deeper/photo_{index}.JPEG" for index in range(12)]
    rows = square_rows([sample_id(path) for path in paths], 6)
    spoil(rows, 5, "truncated")
    write_shard(tmp_path / "labels", rows, rows=6, cols=6)
    write_manifest(tmp_path / "manifest", paths, 1)
    out = tmp_path / "out"
    arguments = ["--out", out, "--layout", "released", "--axes", axes, "--manifest", tmp_path / "manifest"]
    assert main(["labels", "export", str(tmp_path / "labels"), *map(str, arguments)]) == 0
    assert "11 files, 1 photographs left out" in capsys.readouterr().out
    assert len(list(out.rglob("*.pt"))) == 11
    for index, path in enumerate(paths):
        file = out / released_name(path)
        assert released_name(path) == f"deeper/photo_{index}.pt"
        if index == 5:
            assert not file.exists()
            continue
        tensor = torch.load(file, weights_only=True)
        assert (tensor.dtype, tuple(tensor.shape)) == (torch.float16, (2, 2, 6, 6))
        for row, col in ((0, 5), (3, 1)):
            place = (row, col) if axes == "right" else (col, row)
            np.testing.assert_array_equal(tensor[0, :, place[0], place[1]], rows.scores[index, row, col])
            np.testing.assert_array_equal(tensor[1, :, place[0], place[1]], rows.classes[index, row, col])


def test_export_refuses_what_the_layout_cannot_hold(tmp_path: Path, capsys: Output) -> None:
    paths = [f"class0/photo_{index}.JPEG" for index in range(3)]
    ids = [sample_id(path) for path in paths]
    write_manifest(tmp_path / "manifest", paths, 1)
    dotted = paths_of(12)  # class0/photo.0.JPEG, class0/photo.3.JPEG...
    write_shard(tmp_path / "dotted", make_rows([sample_id(path) for path in dotted]))
    write_manifest(tmp_path / "dotted manifest", dotted, 1)
    write_shard(tmp_path / "many", make_rows(ids, num_classes=2050), num_classes=2050)
    write_shard(tmp_path / "oblong", make_rows(ids))
    write_shard(tmp_path / "fewer", make_rows(ids[:2]))
    common = ("--out", tmp_path / "out", "--layout", "released", "--manifest", tmp_path / "manifest", "--axes")
    assert "2050 classes" in refused(capsys, "export", tmp_path / "many", *common, "right")
    assert "maps of 3 x 4 cells" in refused(capsys, "export", tmp_path / "oblong", *common, "released")
    assert "no label for sample" in refused(capsys, "export", tmp_path / "fewer", *common, "right")
    line = refused(capsys, "export", tmp_path / "dotted", *common, "right", "--manifest", tmp_path / "dotted manifest")
    assert "class0/photo.0.JPEG and class0/photo.3.JPEG would both be class0/photo.pt" in line
    assert not (tmp_path / "out").exists()
    (tmp_path / "out").write_text("a file where the folder should be")
    assert "cannot be written" in refused(capsys, "export", tmp_path / "oblong", *common, "right")


def test_every_action_teaches(capsys: Output) -> None:
    for action, words in {
        "inspect": "sample",
        "verify": "exit code 1",
        "merge": "--manifest",
        "export": "--hflip 0",
    }.items():
        with pytest.raises(SystemExit):
            main(["labels", action, "--help"])
        assert words in " ".join(capsys.readouterr().out.split())
