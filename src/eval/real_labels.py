"""ImageNet's reassessed labels: all classes that are right for a validation photograph, none for one that shows no class.

The file's size and digest are checked before it is believed, and every photograph is looked up by the number in its name.
Called by `evaluation` and `tokenlabel evaluate`. Source: Beyer et al. 2020, "Are we done with ImageNet?".
"""

from __future__ import annotations

import importlib.util
import re
from collections.abc import Sequence
from pathlib import Path

from ..core.errors import DataError
from ..core.files import parse_json, sha256_of
from ..data.manifest import Manifest

_NAME = re.compile(r"ILSVRC2012_val_(\d{8})")
WITHOUT = "Set evaluation.real_labels: null to measure without them."


def find_real_labels(file: str, data_root: Path) -> Path:
    """Place of the labels.

    Args:
        file: absolute, relative to data_root, or package:NAME/PATH inside an installed package.
        data_root: of the data set.

    Raises:
        DataError: there is no such file or package.
    """
    path = data_root / file
    if file.startswith("package:"):
        package, _, inside = file.removeprefix("package:").partition("/")
        found = importlib.util.find_spec(package)
        if found is None or not found.submodule_search_locations:
            raise DataError(f"evaluation.real_labels.file {file}: package {package!r} is not installed here. {WITHOUT}")
        path = Path(next(iter(found.submodule_search_locations))) / inside
    if not path.is_file():
        raise DataError(
            f"evaluation.real_labels: {path}: no such file. Put real.json of github.com/google-research/reassessed-imagenet there. "
            f"{WITHOUT}"
        )
    return path


def read_real_labels(path: Path, size_bytes: int | None = None, sha256: str | None = None) -> list[list[int]]:
    """Classes of each validation photograph, the first of ILSVRC2012_val_00000001.

    Args:
        path: a JSON list of lists of class indices.
        size_bytes: that the file must have; None: any.
        sha256: the same for its digest.

    Raises:
        DataError: another size or digest, or no such list.
    """
    found = path.stat().st_size
    if size_bytes not in (None, found):
        raise DataError(
            f"evaluation.real_labels: {path}: {found} bytes, expected {size_bytes}: another or a cut-off file. Fetch it again."
        )
    if sha256 is not None and (digest := sha256_of(path)) != sha256:
        raise DataError(
            f"evaluation.real_labels: {path}: sha256 {digest[:16]}..., the configuration states {sha256[:16]}.... Fetch it "
            "again, or correct bytes and sha256."
        )
    try:
        labels = parse_json(path.read_bytes())
    except ValueError as error:
        raise DataError(f"evaluation.real_labels: {path}: no JSON ({error}). Fetch it again.") from None
    if not isinstance(labels, list) or not all(
        isinstance(classes, list) and all(type(index) is int and index >= 0 for index in classes) for classes in labels
    ):
        raise DataError(
            f"evaluation.real_labels: {path}: expected a JSON list with a list of class indices for each photograph."
        )
    return labels


def labels_of_rows(labels: Sequence[Sequence[int]], manifest: Manifest, where: str) -> list[Sequence[int]]:
    """The labels of each of a manifest's photographs.

    Args:
        labels: by ILSVRC's number of the photograph.
        manifest: of the validation split, its classes in ILSVRC's order.
        where: the file, for errors.

    Raises:
        DataError: a photograph that is not called as ILSVRC calls it, or classes in another order.
    """
    from timm.data import ImageNetInfo

    if list(manifest.classes) != ImageNetInfo().label_names():
        raise DataError(
            f"evaluation.real_labels: {where} numbers ImageNet's 1,000 classes in their usual order, the data set has "
            f"{len(manifest.classes)} classes, {', '.join(manifest.classes[:2])}, ... Set dataset.class_map: imagenet-1k. {WITHOUT}"
        )
    found = []
    for row in range(len(manifest)):
        path = manifest.path(row)
        match = _NAME.search(path.rsplit("/", 1)[-1])
        if not match or not 1 <= int(match[1]) <= len(labels):
            raise DataError(
                f"evaluation.real_labels: photograph {path} is none of ILSVRC2012_val_00000001 to {len(labels):08d}, so {where} "
                f"says nothing of it. {WITHOUT}"
            )
        found.append(labels[int(match[1]) - 1])
    return found
