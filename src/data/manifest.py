"""The manifest: which photographs a data set has, their ids and classes, and a digest per shard.

Made once by the manifest job, read by every other. It fixes class order and the validation split; a job whose
photographs do not fit its manifest stops instead of training on something else.
"""

from __future__ import annotations

import dataclasses
import hashlib
import platform
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import numpy as np
from numpy.typing import NDArray

from ..core.errors import ConfigError, DataError
from ..core.files import atomic_path, read_json
from ..core.seeds import derived_seed, sample_id
from .listing import Entry, Listing
from .readers import ByteSource, list_entries


@dataclass(frozen=True)
class Manifest:
    """The photographs of one split, sorted by path.

    Attributes:
        sample_id: uint64 (images,).
        class_index: int32 (images,).
        size_bytes: int64 (images,); -1 where the path is no file.
        offset: int64 (images,), position in the archive, or row of a Hugging Face data set; -1 in a folder.
        archive: int32 (images,), which of `archives`.
        classes: folder name of each class index.
        shard_digests: one per shard.
        source: `train` or `val`: which of the data set's locations the paths are relative to.
        group_id: uint64 (images,), shared by near-duplicates; a photograph's own id where nobody looked.
        archives: tar files relative to data_root; empty in a folder.
        near_duplicates: photographs that share a picture with another one; None where nobody looked.
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
    archive: NDArray[np.int32]
    group_id: NDArray[np.uint64]
    archives: tuple[str, ...] = ()
    near_duplicates: int | None = None

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
        return source.read(self.path(row), int(self.size_bytes[row]), int(self.offset[row]), int(self.archive[row]))

    def open_source(self, machine: dict[str, Any]) -> ByteSource:
        """The place that this split's paths are relative to, as machine.json gives it.

        Raises:
            DataError: the data set has no such split, or data_root is missing.
        """
        root = Path(machine["data_root"])
        if not root.is_dir():
            raise DataError(
                f"data_root {root}: no such folder on this machine ({platform.node()}). Set data_root to where the data set lies."
            )
        location = machine["dataset"][self.source]
        if location is None:
            raise DataError(
                f"machine settings: dataset.{self.source} is null, and the manifest's split {self.split} lies there. Set it to "
                "that folder or tar, or let snakemake write the file."
            )
        return ByteSource(root, location, machine["dataset"]["format"], self.archives)


def read_arrays(file: Path) -> dict[str, np.ndarray[Any, Any]]:
    """The arrays of an .npz file by name.

    Raises:
        OSError: it cannot be read.
        ValueError: it is torn, or no such file.
    """
    try:
        # opened here: np.load leaves a torn one open
        with open(file, "rb") as opened, np.load(opened, allow_pickle=False) as arrays:
            return {name: arrays[name] for name in arrays.files}
    except (EOFError, BadZipFile) as error:
        raise ValueError(str(error)) from None


def load_manifest(folder: Path, split: str) -> Manifest:
    """Reads one split's manifest.

    Raises:
        DataError: it has not been made or is damaged.
    """
    file = folder / f"{split}.npz"
    try:
        summary = read_json(folder / "manifest.done")
        columns = read_arrays(file)
    except FileNotFoundError as error:
        raise DataError(
            f"{error.filename}: the manifest is missing. Delete {folder} and run snakemake again."
        ) from None
    except (OSError, ValueError, KeyError) as error:
        raise DataError(f"{file}: damaged manifest ({error}). Delete {folder} and run snakemake again.") from None
    columns.setdefault(
        "archive", np.zeros(len(columns["sample_id"]), np.int32)
    )  # manifests of one archive had no such column
    columns.setdefault("group_id", columns["sample_id"])
    described = summary["splits"][split]
    return Manifest(
        split=split,
        source=described["source"],
        classes=tuple(summary["classes"]),
        shard_digests=tuple(described["shard_digests"]),
        archives=tuple(described.get("archives", ())),
        near_duplicates=described.get("near_duplicates"),
        **columns,
    )


def class_names(class_map: str | None, listing: Listing, num_classes: int) -> list[str]:
    """Class order: ILSVRC's, a file's, the data set's own, or the folders' lexicographic order.

    Args:
        class_map: `imagenet-1k`, path of a file with one folder name a line, or None.
        listing: of the training split.
        num_classes: how many classes there must be.

    Raises:
        ConfigError: the file is missing or the count differs.
    """
    if class_map is None:
        names = list(listing.classes)
        if listing.numbered:  # labels are numbers from 0, those without a photograph too
            names = [str(number) for number in range(max(num_classes, 1 + max(map(int, names))))]
        elif not listing.ordered:
            names.sort()
        origin = f"the {len(names)} folders of the training split"
    elif class_map == "imagenet-1k":
        from timm.data import ImageNetInfo

        names = list(ImageNetInfo("imagenet-1k").label_names())
        origin = "dataset.class_map imagenet-1k"
    else:
        try:
            lines = Path(class_map).read_text(encoding="utf-8").split("\n")  # splitlines would split at U+2028 too
        except OSError as error:
            raise ConfigError(
                f"dataset.class_map {class_map}: cannot be read ({error.strerror}). Give imagenet-1k, a file with one "
                "folder name a line, or null."
            ) from None
        except UnicodeDecodeError as error:
            raise ConfigError(f"dataset.class_map {class_map}: not UTF-8 ({error}). Save it as UTF-8.") from None
        known = set(listing.classes)  # a folder's name may begin or end with a space
        names = [line if line in known else line.strip() for line in lines if line.strip()]
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
    listing = list_entries(root, places["train"], places["format"])
    classes = class_names(spec["class_map"], listing, spec["num_classes"])
    train_entries, near_duplicates = _named_entries(root / places["train"], listing, classes), None
    group_of: dict[str, str] = {}  # path -> path of the first of its near-duplicates
    if places["val"] is None:
        groups = None
        if spec.get("near_duplicates"):
            from .duplicates import find_near_duplicates  # loads torch, which readers of manifests do without

            source = ByteSource(root, places["train"], places["format"], listing.archives)
            groups, _ = find_near_duplicates(
                lambda i: source.read(*_place_of(train_entries[i])), len(train_entries), machine["threads"]
            )
            near_duplicates = int((np.bincount(groups)[groups] > 1).sum())
            leaders: dict[int, str] = {}
            for entry, group in zip(train_entries, groups.tolist(), strict=True):
                group_of[entry.path] = leaders.setdefault(group, entry.path)
        train_entries, val_entries = split_validation(train_entries, spec["val_fraction"], spec["val_seed"], groups)
        val_source, val_archives = "train", listing.archives
    else:
        val_listing = list_entries(root, places["val"], places["format"])
        val_entries = _named_entries(root / places["val"], val_listing, classes)
        val_source, val_archives = "val", val_listing.archives
    for split, entries in (("train", train_entries), ("val", val_entries)):
        if not entries:
            raise DataError(
                f"split {split} of {root} has no photograph. "
                + (
                    "A class needs two photographs to give one to validation, and no near-duplicates."
                    if places["val"] is None
                    else "Add some."
                )
            )
    if spec["images"] is not None:
        kept = sorted(train_entries, key=lambda entry: derived_seed("images", entry.path))[: spec["images"]]
        train_entries = sorted(kept, key=lambda entry: entry.path)
    return {
        "train": _manifest(
            "train", "train", train_entries, classes, spec["shards"], listing.archives, group_of, near_duplicates
        ),
        "val": _manifest(
            "val", val_source, val_entries, classes, spec["shards"], val_archives, group_of, near_duplicates
        ),
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
                archive=manifest.archive,
                group_id=manifest.group_id,
                path_bytes=manifest.path_bytes,
                path_ends=manifest.path_ends,
            )
    return {
        "classes": list(manifests["train"].classes),
        "splits": {
            split: {
                "images": len(manifest),
                "source": manifest.source,
                "size_bytes": int(manifest.size_bytes.clip(0).sum()),
                "archives": list(manifest.archives),
                "near_duplicates": manifest.near_duplicates,
                "shard_digests": list(manifest.shard_digests),
            }
            for split, manifest in manifests.items()
        },
    }


def manifest_of_entries(entries: Sequence[Entry], classes: Sequence[str]) -> Manifest:
    """A manifest of photographs that belong to no split of the data set, such as a further test set's.

    Args:
        entries: sorted by path; their class names are among the classes.
        classes: in the order that numbers them.
    """
    return _manifest("val", "val", entries, classes, 1, (), {}, None)


def _named_entries(place: Path, listing: Listing, classes: Sequence[str]) -> list[Entry]:
    """Entries whose class names are those of the data set.

    Raises:
        DataError: a class that the data set has not, or one without photographs.
    """
    entries, found = listing.entries, listing.classes
    if listing.numbered:  # a class map names what the labels number
        if max(map(int, found)) >= len(classes):
            raise DataError(
                f"{place}: label {max(map(int, found))}, but the data set has {len(classes)} classes. Correct "
                "dataset.num_classes or dataset.class_map."
            )
        return [dataclasses.replace(entry, class_name=classes[int(entry.class_name)]) for entry in entries]
    known = set(classes)
    for folder in found:
        if folder not in known:
            raise DataError(
                f"{place / folder}: this folder is no class of the data set ({len(classes)} classes: "
                f"{', '.join(classes[:3])}, ...). Rename or remove it, or set dataset.class_map."
            )
    filled = {entry.class_name for entry in entries}
    empty = [folder for folder in found if folder not in filled]
    if empty:
        raise DataError(
            f"{place / empty[0]}: this class folder holds no image file"
            f"{f' (and {len(empty) - 1} more)' if len(empty) > 1 else ''}. Add photographs or remove the folder."
        )
    return entries


def _place_of(entry: Entry) -> tuple[str, int, int, int]:
    return entry.path, entry.size_bytes, entry.offset, entry.archive


def split_validation(
    entries: Sequence[Entry], fraction: float, seed: int, groups: NDArray[np.int64] | None
) -> tuple[list[Entry], list[Entry]]:
    """Sets a share of every class aside for validation, at least one photograph where a class has two.

    Near-duplicates go to one side together, with the first of them. A photograph's place in the draw is its own, so one that is
    added later moves at most one other across.
    """
    members = [[index] for index in range(len(entries))]
    if groups is not None:
        by_group: dict[int, list[int]] = {}
        for index, group in enumerate(groups.tolist()):
            by_group.setdefault(group, []).append(index)
        members = list(by_group.values())
    by_class: dict[str, list[list[int]]] = {}
    for group_members in members:
        by_class.setdefault(entries[group_members[0]].class_name, []).append(group_members)
    aside: set[int] = set()
    for class_groups in by_class.values():
        total = sum(map(len, class_groups))
        wanted = min(max(1, round(fraction * total)), total - 1)
        drawn = sorted(class_groups, key=lambda group: derived_seed("validation", seed, entries[group[0]].path))
        taken = 0
        for group in drawn:
            if taken + len(group) <= wanted:
                aside.update(group)
                taken += len(group)
        if not taken and (smallest := min(drawn, key=len)) and len(smallest) < total:
            aside.update(smallest)
    kept = [entry for index, entry in enumerate(entries) if index not in aside]
    return kept, [entries[index] for index in sorted(aside)]


def _manifest(
    split: str, source: str, entries: Sequence[Entry], classes: Sequence[str], shards: int, archives: Sequence[str],
    group_of: dict[str, str], near_duplicates: int | None,
) -> Manifest:  # fmt: skip
    index_of = {name: index for index, name in enumerate(classes)}
    ids = np.array([sample_id(entry.path) for entry in entries], dtype=np.uint64)
    in_order = np.sort(ids)  # np.unique hashes, at ten times the cost
    if (in_order[1:] == in_order[:-1]).any():
        raise DataError(f"two photographs of split {split} have the same 64-bit id; rename one of them.")
    encoded = [entry.path.encode("utf-8") for entry in entries]
    hashes = [hashlib.blake2b(digest_size=16) for _ in range(shards)]
    class_index = np.array([index_of[entry.class_name] for entry in entries], dtype=np.int32)
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
        group_id=np.array([sample_id(group_of.get(entry.path, entry.path)) for entry in entries], dtype=np.uint64)
        if group_of
        else ids,
        archive=np.array([entry.archive for entry in entries], dtype=np.int32),
        archives=tuple(archives),
        near_duplicates=near_duplicates,
    )
