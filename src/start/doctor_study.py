"""The study's inputs: data root, classes, one photograph, weights. Called by `tokenlabel doctor`, here and on compute nodes."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

from ..core.errors import CheckpointError, ConfigError, TokenLabelError
from ..core.files import sha256_of
from ..core.needed_weights import NeededWeights, needed_weights
from ..core.study import Study
from ..core.weights_files import find_weights_file
from ..data.listing import IMAGE_SUFFIXES
from ..data.readers import split_location
from .doctor_findings import Finding

SHOWN = 3


def look_at_data(study: Study, *, needed: bool, area: str = "data") -> Iterator[Finding]:
    """Yields what is there of the data set, without listing it whole: a million photographs take minutes.

    Args:
        study: planned.
        needed: whether jobs run on this machine; else a missing root is no fault.
        area: of the findings.
    """
    config, dataset = study.config, study.config.dataset
    root = Path(config.data_root)
    if not root.is_dir():
        status: Literal["warn", "fail"] = "fail" if needed else "warn"
        yield Finding(
            status,
            area,
            f"data_root {root}: no such folder on this machine",
            "Set data_root in an overlay, or have it mounted"
            if needed
            else "Compute nodes need it, this machine does not; --submit looks there",
        )
        return
    for key, location in (("dataset.train", dataset.train), ("dataset.val", dataset.val)):
        if location is None:
            continue
        place = root / split_location(location, dataset.format)[0]
        if dataset.format != "folder":
            there = any(root.glob(location)) if dataset.format == "webdataset" else place.exists()
            if there or place.exists():
                yield Finding("ok", area, f"{place}: there; the first job reads it")
            else:
                yield Finding("fail", area, f"{place}: nothing there", f"Correct {key} or data_root")
        else:
            yield from _look_at_folder(place, key, study, area)


def look_at_scenes(study: Study, *, needed: bool, area: str = "scenes") -> Iterator[Finding]:
    """The same of the scenes of segmentation, where an experiment of it is selected; the first job looks at every mask."""
    if not study.selected_segmentations:
        return
    dataset, root = study.config.segmentation.dataset, Path(study.config.segmentation_root)
    if not root.is_dir():
        status: Literal["warn", "fail"] = "fail" if needed else "warn"
        remedy = "Set segmentation_root in an overlay" if needed else "Compute nodes need it, this machine does not"
        yield Finding(status, area, f"segmentation_root {root}: no such folder on this machine", remedy)
        return
    for split, folders in (("train", dataset.train), ("val", dataset.val)):
        for key, name in (("images", folders.images), ("masks", folders.masks)):
            place, what = root / name, f"segmentation.dataset.{split}.{key}"
            if not place.is_dir():
                yield Finding("fail", area, f"{place}: no such folder", f"Correct {what} or segmentation_root")
            elif next(os.scandir(place), None) is None:
                yield Finding("fail", area, f"{place}: empty", f"It must hold the {key} of {what}")
            else:
                yield Finding("ok", area, f"{place}: there; the first job looks at every mask")
    if dataset.classes is not None and not (root / dataset.classes).is_file():
        yield Finding("fail", area, f"{root / dataset.classes}: no such file", "Correct segmentation.dataset.classes")


def _look_at_folder(place: Path, key: str, study: Study, area: str) -> Iterator[Finding]:
    if not place.is_dir():
        yield Finding("fail", area, f"{place}: no such folder", f"Correct {key} or data_root")
        return
    try:
        folders = sorted(item.name for item in os.scandir(place) if item.is_dir())
    except OSError as error:
        yield Finding("fail", area, f"{place}: cannot be listed ({error.strerror})", "Ask for permission to read it")
        return
    dataset = study.config.dataset
    known = _known_classes(dataset.class_map)
    strangers = [name for name in folders if known is not None and name not in known]
    if not folders:
        yield Finding("fail", area, f"{place}: no class folders", "It must hold one folder for each class")
        return
    if strangers:
        yield Finding(
            "fail",
            area,
            f"{place}: {len(strangers)} folders are no class of dataset.class_map {dataset.class_map}: "
            f"{', '.join(strangers[:SHOWN])}",
            "Rename or remove them, or correct class_map",
        )
    elif known is None and len(folders) != dataset.num_classes and key == "dataset.train":
        yield Finding(
            "fail",
            area,
            f"{place}: {len(folders)} class folders, dataset.num_classes is {dataset.num_classes}",
            "Correct the one that is wrong",
        )
    elif len(folders) < dataset.num_classes:
        yield Finding(
            "warn", area, f"{place}: {len(folders)} of {dataset.num_classes} classes have a folder", "Is it whole?"
        )
    else:
        yield Finding("ok", area, f"{place}: {len(folders)} class folders")
    yield from _look_at_photograph(place, folders, area)


def _look_at_photograph(place: Path, folders: list[str], area: str) -> Iterator[Finding]:
    photograph = next(
        (
            path
            for folder in folders
            for path in sorted((place / folder).iterdir())
            if path.suffix.lower() in IMAGE_SUFFIXES
        ),
        None,
    )
    if photograph is None:
        yield Finding("fail", area, f"{place}: its folders hold no photograph", "Is it whole?")
        return
    from PIL import Image

    try:
        with Image.open(photograph) as picture:
            picture.load()
            size = picture.size
    except (OSError, ValueError, SyntaxError) as error:
        yield Finding(
            "fail",
            area,
            f"{photograph}: does not decode ({error})",
            "Copy it again; a copy that broke off leaves many such",
        )
        return
    yield Finding("ok", area, f"{photograph}: decodes, {size[0]}x{size[1]} pixels")


def _known_classes(class_map: str | None) -> set[str] | None:
    """Folder names that the class map knows; None where it is null, or cannot be asked here."""
    if class_map is None:
        return None
    if class_map == "imagenet-1k":
        try:
            from timm.data import ImageNetInfo
        except ImportError:
            return None
        return set(ImageNetInfo("imagenet-1k").label_names())
    try:
        return {line.strip() for line in Path(class_map).read_text(encoding="utf-8").splitlines() if line.strip()}
    except OSError as error:
        raise ConfigError(f"dataset.class_map {class_map}: cannot be read ({error.strerror}).") from None


def look_at_weights(study: Study, *, area: str = "weights", digests: bool = True) -> Iterator[Finding]:
    """Yields for each file of weights that the study's jobs load whether it is there and is the stated one.

    Args:
        study: planned.
        area: of the findings.
        digests: also compute SHA-256 where one is stated; a second for a gigabyte or two.
    """
    for needed in needed_weights(study, published=False):
        try:
            yield look_at_one(needed, Path(study.config.weights_root), area, digests=digests)
        except TokenLabelError as error:
            yield Finding("fail", area, f"{', '.join(needed.names)}: {error}", _how_to_get(needed))


def look_at_one(needed: NeededWeights, weights_root: Path, area: str, *, digests: bool) -> Finding:
    """One file.

    Raises:
        CheckpointError: it is missing.
    """
    names = ", ".join(needed.names)
    path = find_weights_file(needed.weights, weights_root)
    if path is None:
        try:
            from ..models.pretrained import cached_hub_file
        except ImportError as error:
            return Finding(
                "warn",
                area,
                f"{names}: whether the hub's cache has it cannot be told ({error})",
                "Install torch and timm",
            )
        path = cached_hub_file(needed.architecture)
        if path is None:
            return Finding(
                "warn",
                area,
                f"{names}: {needed.architecture} is not in the hub's cache here",
                "Run tokenlabel fetch where there is a network; jobs on nodes without one would fail",
            )
    if not os.access(path, os.R_OK):
        return Finding("fail", area, f"{names}: {path} cannot be read", "Ask its owner for permission")
    size = f"{path.stat().st_size / 1e6:,.0f} MB"
    if needed.sha256 is None:
        return Finding("ok", area, f"{names}: {path}, {size}; no sha256 is stated")
    if not digests:
        return Finding("ok", area, f"{names}: {path}, {size}")
    digest = sha256_of(path)
    if digest != needed.sha256:
        raise CheckpointError(f"{path}: sha256 {digest[:16]}..., the configuration states {needed.sha256[:16]}....")
    return Finding("ok", area, f"{names}: {path}, {size}, sha256 fits")


def _how_to_get(needed: NeededWeights) -> str:
    if needed.weights.startswith("package:"):
        return ""  # find_weights_file says it
    return "Run tokenlabel fetch, or correct weights_sha256" if needed.sha256 else "Run tokenlabel fetch"
