"""The manifest: which photographs a data set has, their ids and classes, and a digest per shard.

Made once by the manifest job, read by every other. It fixes class order and the validation split; a job whose
photographs do not fit its manifest stops instead of training on something else.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..core.errors import ConfigError, DataError
from ..core.files import atomic_path, read_json
from ..core.seeds import derived_seed, sample_id
from .readers import ByteSource, Entry, list_entries


@dataclass(frozen=True)
class Manifest:
    """The photographs of one split, sorted by path.

    Attributes:
        sample_id: uint64 (images,).
        class_index: int32 (images,).
        size_bytes: int64 (images,).
        offset: int64 (images,), position in the tar file; -1 in a folder.
        classes: folder name of each class index.
        shard_digests: one per shard.
        source: `train` or `val`: which of the data set's locations the paths are relative to.
    """

    split: str
    source: str
    sample_id: NDArray[np.uint64]
    class_index: NDArray[np.int32]
    size_bytes: NDArray[np.int64]
    offset: NDArray[np.int64]
    path_bytes: NDArray[np.uint8]
    path_ends: NDArray[np.int64]
    classes: tuple[str, ...]
    shard_digests: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.sample_id)

    def path(self, row: int) -> str:
        """POSIX path relative to the split's root."""
        start = int(self.path_ends[row - 1]) if row else 0
        return self.path_bytes[start : int(self.path_ends[row])].tobytes().decode("utf-8")

    def rows_of_shard(self, shard: int) -> NDArray[np.int64]:
        """Rows whose id modulo the number of shards is `shard`."""
        return np.flatnonzero(self.sample_id % np.uint64(len(self.shard_digests)) == np.uint64(shard))

    def read(self, source: ByteSource, row: int) -> bytes:
        """Bytes of one photograph; raises DataError where it no longer fits the manifest."""
        return source.read(self.path(row), int(self.size_bytes[row]), int(self.offset[row]))

    def open_source(self, machine: dict[str, Any]) -> ByteSource:
        """The place that this split's paths are relative to, as machine.json gives it.

        Raises:
            DataError: the data set has no such split, or data_root is missing.
        """
        root = Path(machine["data_root"])
        if not root.is_dir():
            raise DataError(
                f"data_root {root}: no such folder on this machine. Set data_root to where the data set lies."
            )
        location = machine["dataset"][self.source]
        return ByteSource(root, location, machine["dataset"]["format"])


def load_manifest(folder: Path, split: str) -> Manifest:
    """Reads one split's manifest.

    Raises:
        DataError: it has not been made or is damaged.
    """
    file = folder / f"{split}.npz"
    try:
        summary = read_json(folder / "manifest.done")
        with np.load(file, allow_pickle=False) as arrays:
            columns = {name: arrays[name] for name in arrays.files}
    except FileNotFoundError as error:
        raise DataError(
            f"{error.filename}: the manifest is missing. Delete {folder} and run snakemake again."
        ) from None
    except (OSError, ValueError, KeyError) as error:
        raise DataError(f"{file}: damaged manifest ({error}). Delete {folder} and run snakemake again.") from None
    return Manifest(
        split=split,
        source=summary["splits"][split]["source"],
        classes=tuple(summary["classes"]),
        shard_digests=tuple(summary["splits"][split]["shard_digests"]),
        **columns,
    )


def class_names(class_map: str | None, folders: Sequence[str], num_classes: int) -> list[str]:
    """Class order: ILSVRC's, a file's, or the folders' lexicographic order.

    Args:
        class_map: `imagenet-1k`, path of a file with one folder name a line, or None.
        folders: class folders of the training split.
        num_classes: how many classes there must be.

    Raises:
        ConfigError: the file is missing or the count differs.
    """
    if class_map is None:
        names = sorted(folders)
        origin = f"the {len(names)} folders of the training split"
    elif class_map == "imagenet-1k":
        from timm.data import ImageNetInfo

        names = list(ImageNetInfo("imagenet-1k").label_names())
        origin = "dataset.class_map imagenet-1k"
    else:
        try:
            names = [line.strip() for line in Path(class_map).read_text(encoding="utf-8").splitlines() if line.strip()]
        except OSError as error:
            raise ConfigError(
                f"dataset.class_map {class_map}: cannot be read ({error.strerror}). Give imagenet-1k, a file with one "
                "folder name a line, or null."
            ) from None
        origin = f"dataset.class_map {class_map}"
    if len(names) != num_classes:
        raise ConfigError(
            f"dataset.num_classes is {num_classes}, but {origin} gives {len(names)} classes. Correct the one that is wrong."
        )
    if len(set(names)) != len(names):
        raise ConfigError(f"{origin}: a class name stands twice.")
    return names


def build_manifests(spec: dict[str, Any], machine: dict[str, Any]) -> dict[str, Manifest]:
    """Lists the photographs of both splits.

    Args:
        spec: the data spec (class map, validation split, cap, shards).
        machine: roots and format.

    Returns:
        split -> manifest, for train and val.

    Raises:
        DataError: missing roots, unknown or empty class folders.
    """
    root = Path(machine["data_root"])
    places = machine["dataset"]
    train_entries, folders = list_entries(root, places["train"], places["format"])
    classes = class_names(spec["class_map"], folders, spec["num_classes"])
    _check_folders(root / places["train"], train_entries, folders, classes)
    if places["val"] is None:
        train_entries, val_entries = _split(train_entries, spec["val_fraction"], spec["val_seed"])
        val_source = "train"
    else:
        val_entries, val_folders = list_entries(root, places["val"], places["format"])
        _check_folders(root / places["val"], val_entries, val_folders, classes)
        val_source = "val"
    for split, entries in (("train", train_entries), ("val", val_entries)):
        if not entries:
            raise DataError(
                f"split {split} of {root} has no photograph. "
                + ("A class needs two photographs to give one to validation." if places["val"] is None else "Add some.")
            )
    if spec["images"] is not None:
        kept = sorted(train_entries, key=lambda entry: derived_seed("images", entry.path))[: spec["images"]]
        train_entries = sorted(kept, key=lambda entry: entry.path)
    return {
        "train": _manifest("train", "train", train_entries, classes, spec["shards"]),
        "val": _manifest("val", val_source, val_entries, classes, spec["shards"]),
    }


def save_manifests(folder: Path, manifests: dict[str, Manifest]) -> dict[str, Any]:
    """Writes each split's arrays and returns the summary for the marker, which the caller writes last."""
    for split, manifest in manifests.items():
        with atomic_path(folder / f"{split}.npz") as temporary, open(temporary, "wb") as file:
            np.savez(
                file,
                sample_id=manifest.sample_id,
                class_index=manifest.class_index,
                size_bytes=manifest.size_bytes,
                offset=manifest.offset,
                path_bytes=manifest.path_bytes,
                path_ends=manifest.path_ends,
            )
    return {
        "classes": list(manifests["train"].classes),
        "splits": {
            split: {
                "images": len(manifest),
                "source": manifest.source,
                "size_bytes": int(manifest.size_bytes.sum()),
                "shard_digests": list(manifest.shard_digests),
            }
            for split, manifest in manifests.items()
        },
    }


def _check_folders(place: Path, entries: Sequence[Entry], folders: Sequence[str], classes: Sequence[str]) -> None:
    known = set(classes)
    for folder in folders:
        if folder not in known:
            raise DataError(
                f"{place / folder}: this folder is no class of the data set ({len(classes)} classes: "
                f"{', '.join(classes[:3])}, ...). Rename or remove it, or set dataset.class_map."
            )
    filled = {entry.class_folder for entry in entries}
    empty = [folder for folder in folders if folder not in filled]
    if empty:
        raise DataError(
            f"{place / empty[0]}: this class folder holds no image file"
            f"{f' (and {len(empty) - 1} more)' if len(empty) > 1 else ''}. Add photographs or remove the folder."
        )


def _split(entries: Sequence[Entry], fraction: float, seed: int) -> tuple[list[Entry], list[Entry]]:
    """Sets a share of every class aside for validation, at least one photograph where a class has two."""
    by_class: dict[str, list[Entry]] = {}
    for entry in entries:
        by_class.setdefault(entry.class_folder, []).append(entry)
    aside: set[str] = set()
    for members in by_class.values():
        count = min(max(1, round(fraction * len(members))), len(members) - 1)
        drawn = sorted(members, key=lambda entry: derived_seed("validation", seed, entry.path))
        aside.update(entry.path for entry in drawn[:count])
    return [e for e in entries if e.path not in aside], [e for e in entries if e.path in aside]


def _manifest(split: str, source: str, entries: Sequence[Entry], classes: Sequence[str], shards: int) -> Manifest:
    index_of = {name: index for index, name in enumerate(classes)}
    ids = np.array([sample_id(entry.path) for entry in entries], dtype=np.uint64)
    if len(np.unique(ids)) != len(ids):
        raise DataError(f"two photographs of split {split} have the same 64-bit id; rename one of them.")
    encoded = [entry.path.encode("utf-8") for entry in entries]
    hashes = [hashlib.blake2b(digest_size=16) for _ in range(shards)]
    class_index = np.array([index_of[entry.class_folder] for entry in entries], dtype=np.int32)
    for entry, identifier, index in zip(entries, ids.tolist(), class_index.tolist(), strict=True):
        hashes[identifier % shards].update(f"{entry.path}\0{index}\0{entry.size_bytes}\n".encode())
    return Manifest(
        split=split,
        source=source,
        sample_id=ids,
        class_index=class_index,
        size_bytes=np.array([entry.size_bytes for entry in entries], dtype=np.int64),
        offset=np.array([entry.offset for entry in entries], dtype=np.int64),
        path_bytes=np.frombuffer(b"".join(encoded), dtype=np.uint8),
        path_ends=np.cumsum([len(path) for path in encoded], dtype=np.int64),
        classes=tuple(classes),
        shard_digests=tuple(digest.hexdigest() for digest in hashes),
    )
