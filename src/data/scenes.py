"""Scenes: photographs with a mask of one class a pixel, paired, checked once, and listed in a manifest for each split.

Built by the scene manifest's job, which decodes every photograph and mask, so that no training meets a mask that does not fit;
read by training, testing and drawing. Never resizes: a scene comes out in the photograph's own pixels, upright. Scenes lie in
folders; tar files, of which stage 1 reads photographs, are not read. Source: the layout of ADE20K (section 4.4 of the paper).
"""

from __future__ import annotations

import platform
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from ..core.errors import DataError, UnreadableImageError
from ..core.files import atomic_path, read_json
from ..core.log import logger
from ..core.seeds import derived_seed, sample_id
from .listing import IMAGE_SUFFIXES, Entry
from .manifest import read_arrays
from .masks import IGNORED as IGNORED
from .masks import ClassIds, decode_mask, read_class_names
from .pixels import decode_upright
from .readers import ByteSource, list_files

SPLITS = ("train", "val")
REMEDY = "Restore it; or delete the folder of the scenes' manifest (results/scenes/...) and run snakemake."
_MASK_SUFFIXES = frozenset((".png",))
_NAMED = 5  # classes, files and the like in a message
_LOGGED_SCENES = 2000  # some ten seconds of one core
_ALWAYS_ALLOWED = 10  # unreadable scenes, but never more than a quarter of a split: a small one may have its few


@dataclass(frozen=True)
class Scene:
    """A photograph and its mask.

    Attributes:
        image: uint8 (3, height, width), RGB, upright.
        mask: int16 (height, width), class index of each pixel or IGNORED.
    """

    image: torch.Tensor
    mask: torch.Tensor


@dataclass(frozen=True)
class SceneManifest:
    """The scenes of one split, sorted by the photographs' paths.

    Attributes:
        split: train or val.
        sample_id: uint64 (scenes,), of the photograph's path.
        image_paths, mask_paths: POSIX, relative to the split's folders of photographs and masks.
        image_bytes, mask_bytes: int64 (scenes,), sizes of the files.
        size_px: int32 (scenes, 2), height and width of the upright photograph.
        classes: names, in the order of their indices.
        first_id, ignore_id: as the masks count.
        class_pixels: int64 (classes,), pixels of each class in the split.
        unreadable: photographs whose scene was left out, and why it cannot be decoded.
    """

    split: str
    sample_id: NDArray[np.uint64]
    image_paths: tuple[str, ...]
    mask_paths: tuple[str, ...]
    image_bytes: NDArray[np.int64]
    mask_bytes: NDArray[np.int64]
    size_px: NDArray[np.int32]
    classes: tuple[str, ...]
    first_id: int
    ignore_id: int | None
    class_pixels: NDArray[np.int64]
    unreadable: tuple[tuple[str, str], ...]

    def __len__(self) -> int:
        return len(self.sample_id)

    @property
    def ids(self) -> ClassIds:
        """Which id in a mask stands for which class."""
        return ClassIds(len(self.classes), self.first_id, self.ignore_id)

    def open(self, machine: Mapping[str, Any]) -> Scenes:
        """The split's scenes on this machine.

        Args:
            machine: segmentation_root and scenes.

        Raises:
            DataError: segmentation_root is missing.
        """
        return Scenes(self, machine)


class Scenes:
    """A split's scenes, decoded when asked for; safe in threads and in processes that are forked.

    Args:
        manifest: of the split.
        machine: segmentation_root and scenes.

    Raises:
        DataError: segmentation_root is missing.
    """

    def __init__(self, manifest: SceneManifest, machine: Mapping[str, Any]) -> None:
        self.manifest = manifest
        self._images, self._masks = _sources(machine, manifest.split)
        self._ids = manifest.ids

    def __len__(self) -> int:
        return len(self.manifest)

    def read(self, row: int) -> Scene:
        """One scene.

        Raises:
            UnreadableImageError: photograph or mask cannot be decoded; the message says which.
            DataError: they are not what the manifest says.
        """
        manifest = self.manifest
        image = manifest.image_paths[row], int(manifest.image_bytes[row])
        mask = manifest.mask_paths[row], int(manifest.mask_bytes[row])
        return _read(self._images, self._masks, image, mask, self._ids)


def _read(images: ByteSource, masks: ByteSource, image: tuple[str, int], mask: tuple[str, int], ids: ClassIds) -> Scene:
    """Reads the scene of two paths and sizes in bytes."""
    pixels = decode_upright(images.read(*image, -1))
    try:
        encoded = masks.read(*mask, -1)
    except UnreadableImageError as error:
        raise UnreadableImageError(f"its mask: {error}") from None
    try:
        indices = ids.class_indices(decode_mask(encoded))
    except UnreadableImageError as error:
        raise UnreadableImageError(f"its mask: {error}") from None
    except DataError as error:
        raise DataError(f"{masks.place / mask[0]}: {error}") from None
    height, width = pixels.shape[1:]
    if indices.shape != (height, width):
        on_its_side = " (it fits before the photograph's EXIF orientation is applied)" * (
            indices.shape == (width, height) and height != width
        )
        raise DataError(
            f"{masks.place / mask[0]}: {indices.shape[1]} x {indices.shape[0]} pixels, its photograph {image[0]} has {width} x "
            f"{height}{on_its_side}. Give the mask the size of the upright photograph."
        )
    return Scene(pixels, torch.from_numpy(indices))


def _sources(machine: Mapping[str, Any], split: str) -> tuple[ByteSource, ByteSource]:
    """Where a split's photographs and masks lie."""
    root = Path(machine["segmentation_root"])
    if not root.is_dir():
        raise DataError(
            f"segmentation_root {root}: no such folder on this machine ({platform.node()}). Set segmentation_root (in "
            "config.yaml, an overlay, or --config segmentation_root=/path) to the folder that holds the scenes."
        )
    places = machine["scenes"][split]
    images, masks = (ByteSource(root, places[kind], "folder", remedy=REMEDY) for kind in ("images", "masks"))
    return images, masks


def build_scene_manifests(spec: Mapping[str, Any], machine: Mapping[str, Any]) -> dict[str, SceneManifest]:
    """Pairs and checks the scenes of both splits: every photograph and mask is decoded, by `machine.threads` threads.

    Args:
        spec: of the scenes: num_classes, first_id, ignore_id, images (of the training split at most; null: all).
        machine: segmentation_root, scenes (folders of each split, endings of the names, class file, on_unreadable,
            max_unreadable_fraction), threads.

    Returns:
        split -> manifest, for train and val.

    Raises:
        ConfigError: the class file is not as it should be.
        DataError: a folder is missing or empty, photographs and masks do not pair, a mask does not fit, or too many scenes
            cannot be decoded.
    """
    ids = ClassIds(spec["num_classes"], spec["first_id"], spec["ignore_id"])
    places = machine["scenes"]
    sources = {split: _sources(machine, split) for split in SPLITS}  # says what is missing before anything is read
    class_file = None if places["classes"] is None else Path(machine["segmentation_root"]) / places["classes"]
    classes = read_class_names(class_file, ids)
    # a machine.json by hand may leave the endings out: most scenes have none
    endings = places.get("image_suffix", ""), places.get("mask_suffix", "")
    pairs = {split: pair_scenes(*sources[split], *endings) for split in SPLITS}
    if spec["images"] is not None:
        kept = sorted(pairs["train"], key=lambda pair: derived_seed("images", pair[0].path))[: spec["images"]]
        pairs["train"] = sorted(kept, key=lambda pair: pair[0].path)
    manifests = {
        split: _checked(split, pairs[split], *sources[split], classes, ids, machine) for split in SPLITS
    }  # fmt: skip
    _say_what_is_empty(manifests)
    return manifests


def pair_scenes(
    images: ByteSource, masks: ByteSource, image_suffix: str = "", mask_suffix: str = ""
) -> list[tuple[Entry, Entry]]:
    """Pairs photographs and masks by their path without format and ending; files without the ending are passed over.

    In a folder of both, a file is what the longer ending says; where both are equally long, as without any, the PNGs are the masks.

    Args:
        images, masks: the folders.
        image_suffix, mask_suffix: how names end before the dot of the format: `_leftImg8bit`, `_gtFine_labelTrainIds`.

    Returns:
        photograph and mask of each scene, sorted by the photograph's path.

    Raises:
        DataError: a folder is missing or has no photograph, two photographs share a name, or one has no mask or a mask none.
    """
    for place in (images.place, masks.place):
        if not place.is_dir():
            raise DataError(
                f"{place}: no such folder. Correct segmentation.dataset.train or val; their folders are relative to "
                "segmentation_root."
            )
    found = [entry for entry in list_files(images.place, IMAGE_SUFFIXES) if _has(entry, image_suffix)]
    drawn = [entry for entry in list_files(masks.place, _MASK_SUFFIXES) if _has(entry, mask_suffix)]
    if images.place == masks.place:
        both = {entry.path for entry in found} & {entry.path for entry in drawn}
        if len(image_suffix) > len(mask_suffix):
            drawn = [entry for entry in drawn if entry.path not in both]
        else:
            found = [entry for entry in found if entry.path not in both]
    if not found:
        ending = f" whose name ends in {image_suffix!r} (segmentation.dataset.image_suffix)" if image_suffix else ""
        raise DataError(
            f"{images.place}: no photograph{ending}. Expected image files, each with a mask of the same name."
        )
    photographs, masks_of = _by_name(images.place, found, image_suffix), _by_name(masks.place, drawn, mask_suffix)
    endings = f" but for the endings {image_suffix!r} and {mask_suffix!r}" if image_suffix or mask_suffix else ""
    remedy = "Add it, or remove the {}."
    if not photographs.keys() & masks_of.keys():
        remedy += " Where all names differ by an ending, set segmentation.dataset.image_suffix and mask_suffix."
    for mine, others, what, other in (
        (photographs, masks_of, "photograph", f"mask (PNG) of the same name{endings} in {masks.place}"),
        (masks_of, photographs, "mask", f"photograph of the same name{endings} in {images.place}"),
    ):
        lonely = [entry.path for name, entry in mine.items() if name not in others]
        if lonely:
            place = images.place if what == "photograph" else masks.place
            more = f" (nor have {len(lonely) - 1:,} more)" if len(lonely) > 1 else ""
            raise DataError(f"{place / lonely[0]}: this {what} has no {other}{more}. {remedy.format(what)}")
    return [(entry, masks_of[name]) for name, entry in photographs.items()]


def _has(entry: Entry, ending: str) -> bool:
    return not ending or PurePosixPath(entry.path).stem.endswith(ending)


def _by_name(place: Path, entries: Sequence[Entry], ending: str) -> dict[str, Entry]:
    found: dict[str, Entry] = {}
    for entry in entries:
        name = str(PurePosixPath(entry.path).with_suffix("")).removesuffix(ending)
        if name in found:
            raise DataError(
                f"{place}: {found[name].path} and {entry.path} have one name, so they would share a mask. Rename or remove one."
            )
        found[name] = entry
    return found


def _checked(
    split: str, pairs: Sequence[tuple[Entry, Entry]], images: ByteSource, masks: ByteSource,
    classes: tuple[str, ...], ids: ClassIds, machine: Mapping[str, Any],
) -> SceneManifest:  # fmt: skip
    """Decodes a split's scenes and lists those that can be."""
    kept: list[tuple[Entry, Entry]] = []
    sizes: list[tuple[int, int]] = []
    pixels = np.zeros(ids.count + 1, np.int64)  # the first of the ignored ones
    unreadable: list[tuple[str, str]] = []
    without_class = 0

    def look(pair: tuple[Entry, Entry]) -> tuple[tuple[int, int], NDArray[np.int64]] | str:
        image, mask = ((entry.path, entry.size_bytes) for entry in pair)
        try:
            scene = _read(images, masks, image, mask, ids)
        except UnreadableImageError as error:
            return str(error)
        counts = np.bincount(scene.mask.numpy().ravel() - IGNORED, minlength=ids.count + 1)
        return (scene.mask.shape[0], scene.mask.shape[1]), counts

    with ThreadPoolExecutor(machine["threads"]) as pool:
        futures = [pool.submit(look, pair) for pair in pairs]
        try:
            for number, (pair, future) in enumerate(zip(pairs, futures, strict=True), start=1):
                if number % _LOGGED_SCENES == 0:
                    logger.info("%s: %d of %d scenes looked at", split, number, len(pairs))
                seen = future.result()
                if isinstance(seen, str):
                    unreadable.append((pair[0].path, seen))
                    _check_unreadable(split, unreadable, len(pairs), machine["scenes"])
                    continue
                kept.append(pair)
                sizes.append(seen[0])
                pixels += seen[1]
                without_class += not seen[1][1:].any()
        finally:
            pool.shutdown(cancel_futures=True)  # the first mistake is told without looking at what is left
    if not pixels[1:].any():
        raise DataError(
            f"split {split}: none of {len(kept):,} masks has a pixel of a class, all are ignored (id {ids.ignore_id}). Correct "
            "first_id or ignore_id of segmentation.dataset."
        )
    if without_class:
        logger.warning("%s: %d scene(s) of ignored pixels only; nothing is learned from them", split, without_class)
    return SceneManifest(
        split=split,
        sample_id=np.array([sample_id(image.path) for image, _ in kept], np.uint64),
        image_paths=tuple(image.path for image, _ in kept),
        mask_paths=tuple(mask.path for _, mask in kept),
        image_bytes=np.array([image.size_bytes for image, _ in kept], np.int64),
        mask_bytes=np.array([mask.size_bytes for _, mask in kept], np.int64),
        size_px=np.array(sizes, np.int32),
        classes=classes,
        first_id=ids.first_id,
        ignore_id=ids.ignore_id,
        class_pixels=pixels[1:],
        unreadable=tuple(unreadable),
    )


def _check_unreadable(split: str, found: Sequence[tuple[str, str]], scenes: int, places: Mapping[str, Any]) -> None:
    """Warns of the last one that was found; stops where it is one too many."""
    path, reason = found[-1]
    if places["on_unreadable"] == "fail":
        raise DataError(
            f"{path}: the scene cannot be decoded ({reason}). Replace the file, or set segmentation.dataset.on_unreadable: record."
        )
    logger.warning("%s: the scene cannot be decoded (%s); left out of the split %s", path, reason, split)
    few = min(_ALWAYS_ALLOWED, -(-scenes // 4))
    limit = max(few, int(places["max_unreadable_fraction"] * scenes))
    if len(found) > limit or len(found) == scenes:
        raise DataError(
            f"split {split}: {len(found)} of {scenes:,} scenes cannot be decoded, more than the {min(limit, scenes - 1)} that "
            f"segmentation.dataset.max_unreadable_fraction {places['max_unreadable_fraction']:g} allows; first: {found[0][0]} "
            f"({found[0][1]}). Check the disk, or raise the fraction."
        )


def _say_what_is_empty(manifests: Mapping[str, SceneManifest]) -> None:
    """Names classes without a pixel: a class that is not trained is never found, one that is not tested is not counted."""
    for split, result in (("train", "it cannot be learned"), ("val", "it is not counted in the mean over classes")):
        manifest = manifests[split]
        empty = [name for name, pixels in zip(manifest.classes, manifest.class_pixels, strict=True) if not pixels]
        if empty:
            named = ", ".join(empty[:_NAMED]) + (f" and {len(empty) - _NAMED} more" if len(empty) > _NAMED else "")
            level = logger.warning if split == "train" else logger.info
            level("%s: no pixel of class %s; %s", split, named, result)


_COLUMNS = ("sample_id", "image_bytes", "mask_bytes", "size_px", "class_pixels")


def save_scene_manifests(folder: Path, manifests: Mapping[str, SceneManifest]) -> dict[str, Any]:
    """Writes each split's arrays and returns the summary for the marker, which the caller writes last."""
    for split, manifest in manifests.items():
        with atomic_path(folder / f"{split}.npz") as temporary, open(temporary, "wb") as file:
            np.savez(
                file,
                image_paths=np.array(manifest.image_paths, np.str_),
                mask_paths=np.array(manifest.mask_paths, np.str_),
                **{name: getattr(manifest, name) for name in _COLUMNS},
            )
    first = manifests["train"]
    return {
        "classes": list(first.classes),
        "first_id": first.first_id,
        "ignore_id": first.ignore_id,
        "splits": {
            split: {
                "images": len(manifest),
                "size_bytes": int(manifest.image_bytes.sum() + manifest.mask_bytes.sum()),
                "unreadable": [list(found) for found in manifest.unreadable],
                "pixels": int(manifest.size_px.astype(np.int64).prod(1).sum()),
                "class_pixels": manifest.class_pixels.tolist(),
            }
            for split, manifest in manifests.items()
        },
    }


def load_scene_manifest(folder: Path, split: str) -> SceneManifest:
    """Reads one split's manifest.

    Args:
        folder: results/scenes/{name}-{digest}.
        split: train or val.

    Raises:
        DataError: it has not been made or is damaged.
    """
    file = folder / f"{split}.npz"
    try:
        summary = read_json(folder / "manifest.done")
        arrays = read_arrays(file)
        columns = {name: arrays[name] for name in _COLUMNS}
        image_paths, mask_paths = (tuple(arrays[name].tolist()) for name in ("image_paths", "mask_paths"))
        return SceneManifest(
            split=split,
            classes=tuple(summary["classes"]),
            first_id=summary["first_id"],
            ignore_id=summary["ignore_id"],
            unreadable=tuple((path, reason) for path, reason in summary["splits"][split]["unreadable"]),
            image_paths=image_paths,
            mask_paths=mask_paths,
            **columns,
        )
    except FileNotFoundError as error:
        raise DataError(
            f"{error.filename}: the scenes' manifest is missing. Delete {folder} and run snakemake again."
        ) from None
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(
            f"{file}: damaged manifest of scenes ({error}). Delete {folder} and run snakemake again."
        ) from None
