"""The store: right labels from any process and thread, and errors that name the shard and the remedy."""

from __future__ import annotations

import pickle
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader, Dataset

from tokenlabel.core.errors import LabelError
from tokenlabel.core.files import read_json, write_json
from tokenlabel.core.seeds import sample_id
from tokenlabel.labels import LabelStore
from tokenlabel.labels.shards import STATUS_OK, STATUS_UNREADABLE, LabelRows, marker_path

from .conftest import COLS, ROWS, K, make_rows, paths_of, write_shard

Folder = Callable[..., tuple[Path, LabelRows]]


@pytest.mark.parametrize("tail", [False, True])
@pytest.mark.parametrize("num_classes", [10, 70000])
@pytest.mark.parametrize("storage", ["compact", "fast"])
def test_round_trip(label_folder: Folder, tail: bool, num_classes: int, storage: str) -> None:
    folder, rows = label_folder(tail=tail, num_classes=num_classes, storage=storage)
    store = LabelStore(folder, split="train")
    assert len(store) == 20
    assert (store.num_classes, store.grid, store.k) == (num_classes, (ROWS, COLS), K)
    assert (store.view, store.annotator, store.has_tail) == ("squash", "lite0", tail)
    for position, path in enumerate(paths_of(20)):
        label = store[store.id_for(path)]
        assert label.sample_id == sample_id(path) == rows.sample_id[position]
        np.testing.assert_array_equal(label.scores, rows.scores[position])
        np.testing.assert_array_equal(label.classes, rows.classes[position])
        assert label.classes.dtype == (np.uint16 if num_classes == 10 else np.uint32)
        assert label.image_size == tuple(rows.image_size[position])
        assert (label.status, label.reason) == (rows.status[position], rows.reason[position])
        if rows.tail is None:
            assert label.tail is None
        else:
            np.testing.assert_array_equal(label.tail, rows.tail[position])
    assert sum(summary.images for summary in store.verify()) == 20


def test_get_many_keeps_the_order_and_repetitions(label_folder: Folder) -> None:
    folder, rows = label_folder()
    store = LabelStore(str(folder), "train")
    wanted = [7, 3, 19, 3, 0, 5]
    batch = store.get_many(rows.sample_id[wanted])
    np.testing.assert_array_equal(batch.sample_id, rows.sample_id[wanted])
    for name in ("scores", "classes", "tail", "image_size", "status"):
        np.testing.assert_array_equal(getattr(batch, name), getattr(rows, name)[wanted])
    assert batch.reason == [rows.reason[position] for position in wanted]
    assert batch.status[5] == STATUS_UNREADABLE
    assert len(store.get_many([])) == 0


def test_shards_of_both_storage_profiles_in_one_folder(label_folder: Folder) -> None:
    folder, rows = label_folder()
    mine = rows.take(np.flatnonzero(rows.sample_id % np.uint64(3) == 1))
    write_shard(folder, mine, shard=1, total=3, manifest_digest="m1", storage="fast")
    batch = LabelStore(folder, "train").get_many(rows.sample_id)
    for name in ("scores", "classes", "tail", "image_size", "status"):
        np.testing.assert_array_equal(getattr(batch, name), getattr(rows, name))


@pytest.mark.parametrize("storage", ["compact", "fast"])
def test_arrays_can_be_handed_to_torch(label_folder: Folder, storage: str) -> None:
    folder, rows = label_folder(storage=storage)
    label = LabelStore(folder, "train")[int(rows.sample_id[0])]
    assert torch.from_numpy(label.scores).shape == (ROWS, COLS, K)  # warns of arrays that are read-only
    assert label.tail is not None
    label.tail[0, 0] = 3


def test_ids_and_status(label_folder: Folder) -> None:
    folder, rows = label_folder()
    store = LabelStore(folder, "train")
    np.testing.assert_array_equal(store.ids, np.sort(rows.sample_id))
    with pytest.raises(ValueError, match="read-only"):
        store.ids[0] = 1
    status = store.status_of(rows.sample_id)
    np.testing.assert_array_equal(status, rows.status)
    assert (status == STATUS_OK).sum() == 19
    assert int(rows.sample_id[0]) in store
    assert rows.sample_id[0] in store
    assert int(rows.sample_id[0]) ^ 1 not in store
    assert -1 not in store
    assert "photo" not in store


def test_missing_labels(label_folder: Folder) -> None:
    store = LabelStore(label_folder()[0], "train")
    with pytest.raises(LabelError, match=r"no label for 'class0/none\.JPEG' in split 'train'.*snakemake labels"):
        store.id_for("class0/none.JPEG")
    for absent in (0, 12345, 2**64 - 1):
        with pytest.raises(LabelError, match=rf"no label for sample {absent:#018x}.*snakemake labels"):
            store[absent]
    with pytest.raises(LabelError, match=r"\(1 of 2 asked for are absent\)"):
        store.status_of([int(store.ids[0]), 12345])
    known = [store.status_of(store.ids[:1])[0], store.status_of(store.ids[1:2])[0]]
    asked = [int(store.ids[1]), 12345, 2**64 - 1, int(store.ids[0])]
    assert store.status_of(asked, absent=77).tolist() == [known[1], 77, 77, known[0]]


def test_index_is_light(tmp_path: Path) -> None:
    write_shard(tmp_path, make_rows([sample_id(path) for path in paths_of(1000)]))
    store = LabelStore(tmp_path, "train")
    held = sum(value.nbytes for value in vars(store).values() if isinstance(value, np.ndarray))
    assert held * 1281.167 < 20e6  # ImageNet's 1,281,167 photographs


def test_one_shard_gone(label_folder: Folder) -> None:
    folder, _ = label_folder()
    (folder / "train-00001-of-00003.h5").unlink()
    with pytest.raises(LabelError, match=r"1 of 3 shards are missing: train-00001-of-00003\.h5.*snakemake labels"):
        LabelStore(folder, "train")


def test_no_folder_and_no_split(label_folder: Folder, tmp_path: Path) -> None:
    with pytest.raises(LabelError, match="no such folder"):
        LabelStore(tmp_path / "nothing", "train")
    with pytest.raises(LabelError, match="no shards of split 'val'; splits there: train"):
        LabelStore(label_folder()[0], "val")


def test_shards_of_two_totals(label_folder: Folder) -> None:
    folder, _ = label_folder()
    write_shard(folder, make_rows([99]), shard=0, total=2)
    with pytest.raises(LabelError, match="shards of 2 and of 3 in one folder"):
        LabelStore(folder, "train")


def test_half_written_shards(label_folder: Folder) -> None:
    folder, _ = label_folder()
    shard = folder / "train-00002-of-00003.h5"
    whole = shard.read_bytes()
    marker = read_json(marker_path(shard))
    marker_path(shard).unlink()
    with pytest.raises(LabelError, match=r"train-00002-of-00003\.done: missing, the shard was not finished"):
        LabelStore(folder, "train")
    write_json(marker_path(shard), marker)
    shard.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(LabelError, match=rf"shard {shard}: .*truncated"):
        LabelStore(folder, "train")
    shard.write_bytes(whole)
    with h5py.File(shard, "r+") as file:
        file.attrs["complete"] = False
    with pytest.raises(LabelError, match=rf"shard {shard}: incomplete"):
        LabelStore(folder, "train")


def test_newer_version(label_folder: Folder) -> None:
    folder, _ = label_folder()
    shard = folder / "train-00002-of-00003.h5"
    with h5py.File(shard, "r+") as file:
        file.attrs["format_version"] = 2
    with pytest.raises(LabelError, match=rf"shard {shard}: format version 2, this code reads 1\."):
        LabelStore(folder, "train")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"annotator": "lite1"}, "annotator is lite1, but lite0"),
        ({"view": "centre_crop"}, "view is centre_crop, but squash"),
        ({"num_classes": 11}, "num_classes is 11, but 10"),
        ({"labels_digest": "other"}, "labels_digest is other, but spec"),
    ],
)
def test_shards_of_two_makings(label_folder: Folder, change: dict[str, object], message: str) -> None:
    folder, rows = label_folder()
    write_shard(folder, make_rows([int(rows.sample_id[0])]), shard=2, total=3, **change)
    with pytest.raises(LabelError, match=rf"train-00002-of-00003\.h5: {message}.*snakemake labels"):
        LabelStore(folder, "train")


def test_what_may_differ_between_shards(label_folder: Folder) -> None:
    folder, rows = label_folder()
    mine = [int(identifier) for identifier in rows.sample_id if int(identifier) % 3 == 2]
    changes = {"libraries": {"torch": "3"}, "created": "later", "manifest_digest": "other photographs"}
    write_shard(folder, make_rows(mine), shard=2, total=3, **changes)
    assert len(LabelStore(folder, "train")) == 20


def test_sample_in_the_wrong_shard(label_folder: Folder) -> None:
    folder, rows = label_folder()
    foreign = next(int(identifier) for identifier in rows.sample_id if int(identifier) % 3 == 0)
    write_shard(folder, make_rows([foreign]), shard=2, total=3)
    with pytest.raises(
        LabelError,
        match=r"train-00002-of-00003\.h5: sample 0x[0-9a-f]{16} belongs into another shard.*snakemake labels",
    ):
        LabelStore(folder, "train")


def test_labels_of_other_photographs(label_folder: Folder) -> None:
    folder, _ = label_folder()
    assert len(LabelStore(folder, "train", manifest_digests=["m0", "m1", "m2"])) == 20
    with pytest.raises(
        LabelError, match=r"train-00001-of-00003\.h5: made from other photographs .*digest m1, expected n1"
    ):
        LabelStore(folder, "train", manifest_digests=["m0", "n1", "m2"])
    with pytest.raises(LabelError, match=f"labels {folder}: 3 shards, the manifest has 2"):
        LabelStore(folder, "train", manifest_digests=["m0", "m1"])


def test_ids_that_share_their_first_bits(tmp_path: Path) -> None:
    rows = make_rows([3, 2**63, 2**63 + 1, 2**64 - 1, 7, 5])
    write_shard(tmp_path, rows)
    store = LabelStore(tmp_path, "train")
    for position, identifier in enumerate(rows.sample_id.tolist()):
        np.testing.assert_array_equal(store[identifier].scores, rows.scores[position])
        assert identifier in store
    assert not any(absent in store for absent in (0, 4, 6, 8, 2**63 + 2, 2**64 - 2))


def test_renamed_shard(label_folder: Folder) -> None:
    folder, _ = label_folder()
    first, second = folder / "train-00000-of-00003.h5", folder / "train-00001-of-00003.h5"
    for path in (first, marker_path(first)):
        path.replace(second.with_suffix(path.suffix))
    write_shard(folder, make_rows([3]), shard=0, total=3)
    with pytest.raises(LabelError, match=r"train-00001-of-00003\.h5: was written as train-00000-of-00003\.h5"):
        LabelStore(folder, "train")


@pytest.mark.parametrize("key", ["manifest_digest", "labels_digest", "size_bytes", "images"])
def test_marker_of_another_shard(label_folder: Folder, key: str) -> None:
    folder, _ = label_folder()
    marker = folder / "train-00001-of-00003.done"
    write_json(marker, read_json(marker) | {key: 0})
    with pytest.raises(LabelError, match=rf"train-00001-of-00003\.h5: {key} is .*, its marker says 0"):
        LabelStore(folder, "train")


def test_flipped_bit_in_a_map(label_folder: Folder) -> None:
    folder, rows = label_folder()
    shard = folder / "train-00000-of-00003.h5"
    with h5py.File(shard) as file:
        identifier = int(file["sample_id"][1])
        chunk = file["records"].id.get_chunk_info(1)
    content = bytearray(shard.read_bytes())
    content[chunk.byte_offset + chunk.size // 2] ^= 4
    shard.write_bytes(content)
    store = LabelStore(folder, "train")
    with pytest.raises(LabelError, match=rf"shard {shard}: row 1 cannot be read.*snakemake labels"):
        store[identifier]
    with pytest.raises(LabelError, match=f"{shard}: sha256"):
        store.verify()
    assert len(store.get_many(rows.sample_id[rows.sample_id % 3 == 1])) > 0  # the other shards stay usable


def test_shard_removed_or_replaced_after_opening(label_folder: Folder) -> None:
    folder, _ = label_folder()
    store = LabelStore(folder, "train")
    shard = folder / "train-00000-of-00003.h5"
    identifier = next(int(identifier) for identifier in store.ids if int(identifier) % 3 == 0)
    shard.unlink()
    with pytest.raises(LabelError, match=f"shard {shard}: missing"):
        store[identifier]
    write_shard(folder, make_rows(list(range(3, 60, 3))), shard=0, total=3)
    with pytest.raises(LabelError, match="replaced"):
        store[identifier]


# from Python 3.12 on, forking beside threads warns; it is what is tested here
FORKING = pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")


class _Labels(Dataset[tuple[str, float]]):
    def __init__(self, store: LabelStore) -> None:
        self.store = store

    def __len__(self) -> int:
        return len(self.store)

    def __getitem__(self, index: int) -> tuple[str, float]:
        identifier = int(self.store.ids[index])
        return str(identifier), float(self.store[identifier].scores.astype(np.float32).sum())


@FORKING
@pytest.mark.parametrize("start", ["fork", "spawn"])
def test_data_loader_workers(label_folder: Folder, start: str) -> None:
    folder, rows = label_folder()
    store = LabelStore(folder, "train")
    store.get_many(rows.sample_id)  # files are open in this process when the workers start
    loader = DataLoader(_Labels(store), batch_size=3, num_workers=2, multiprocessing_context=start)
    found = {int(name): total for names, totals in loader for name, total in zip(names, totals.tolist(), strict=True)}
    expected = {
        int(identifier): float(scores.astype(np.float32).sum())
        for identifier, scores in zip(rows.sample_id, rows.scores, strict=True)
    }
    assert found == pytest.approx(expected)


@FORKING
def test_forked_while_a_thread_holds_the_lock(label_folder: Folder) -> None:
    folder, rows = label_folder()
    store = LabelStore(folder, "train")
    store.get_many(rows.sample_id)
    with store._open_files.lock:  # as a reading thread would at the moment of the fork
        context = torch.multiprocessing.get_context("fork")
        child = context.Process(target=store.__getitem__, args=(int(rows.sample_id[0]),))
        child.start()
        child.join(20)
        hung = child.is_alive()
        if hung:
            child.kill()
    assert not hung
    assert child.exitcode == 0


def test_threads(label_folder: Folder) -> None:
    folder, rows = label_folder()
    store = LabelStore(folder, "train")
    wrong: list[int] = []

    def read(seed: int) -> None:
        for position in np.random.default_rng(seed).integers(0, 20, 60).tolist():
            label = store[int(rows.sample_id[position])]
            if not np.array_equal(label.scores, rows.scores[position]):
                wrong.append(position)

    threads = [threading.Thread(target=read, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


def test_pickle(label_folder: Folder) -> None:
    folder, rows = label_folder()
    store = LabelStore(folder, "train")
    store.get_many(rows.sample_id)
    again = pickle.loads(pickle.dumps(store))
    np.testing.assert_array_equal(again.get_many(rows.sample_id).scores, rows.scores)
    assert not again.ids.flags.writeable


def test_more_shards_than_open_files(label_folder: Folder, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tokenlabel.labels.store._MAX_OPEN_FILES", 2)
    folder, rows = label_folder()
    store = LabelStore(folder, "train")
    for _ in range(2):
        np.testing.assert_array_equal(store.get_many(rows.sample_id).scores, rows.scores)
    assert len(store._open_files._files) == 2


def test_reading_labels_does_not_load_torch() -> None:
    code = (
        "import sys, tokenlabel.labels as labels, tokenlabel.labels.command; labels.LabelStore; "
        "assert 'torch' not in sys.modules; assert callable(labels.sparse_targets); assert 'torch' in sys.modules; "
        "assert set(labels.__all__) <= set(dir(labels))"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


def test_unknown_name_of_the_package() -> None:
    import tokenlabel.labels

    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        tokenlabel.labels.nothing  # noqa: B018


@pytest.mark.parametrize("wrong", [-1, 2**64, 1.5, "class0/photo.0.JPEG", None])
def test_what_is_no_id(label_folder: Folder, wrong: object) -> None:
    store = LabelStore(label_folder()[0], "train")
    with pytest.raises(LabelError, match=r"is no sample id.*id_for"):
        store[wrong]  # type: ignore[index]
    for several in ([wrong], wrong, np.array([1.5])):
        with pytest.raises(LabelError, match=r"is no sample id.*id_for"):
            store.get_many(several)  # type: ignore[arg-type]


def test_iterating_gives_the_ids(label_folder: Folder) -> None:
    store = LabelStore(label_folder()[0], "train")
    assert list(store) == store.ids.tolist()
