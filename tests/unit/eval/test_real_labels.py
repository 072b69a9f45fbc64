"""Reassessed labels: the file that is believed, the photograph that a number belongs to, and refusals in one line."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import pytest

from tokenlabel.core.config import load_config
from tokenlabel.core.errors import DataError
from tokenlabel.data.listing import Entry
from tokenlabel.data.manifest import Manifest, manifest_of_entries
from tokenlabel.eval.real_labels import find_real_labels, labels_of_rows, read_real_labels


def manifest_of(*paths: str, classes: list[str] | None = None) -> Manifest:
    if classes is None:
        from timm.data import ImageNetInfo

        classes = ImageNetInfo().label_names()
    return manifest_of_entries([Entry(path, 1, -1, 0, path.split("/")[0]) for path in paths], classes)


def test_the_configured_file_is_the_one_that_timm_ships(raw_config: dict[str, object]) -> None:
    real = load_config(raw_config).evaluation.real_labels
    assert real is not None
    labels = read_real_labels(find_real_labels(real.file, Path("/nowhere")), real.bytes, real.sha256)
    assert len(labels) == 50000
    assert labels[:3] == [[], [970, 795], [230, 231]]
    assert max(index for classes in labels for index in classes) == 999


def test_photographs_are_looked_up_by_their_number() -> None:
    manifest = manifest_of("n01440764/ILSVRC2012_val_00000003.JPEG", "n01443537/x_ILSVRC2012_val_00000001_small.png")
    assert labels_of_rows([[7], [8], [9, 1]], manifest, "real.json") == [[9, 1], [7]]


@pytest.mark.parametrize(
    "path",
    ["n01440764/photo_3.JPEG", "n01440764/ILSVRC2012_val_00000004.JPEG", "n01440764/ILSVRC2012_val_00000000.JPEG"],
)
def test_a_name_that_does_not_fit_is_one_line(path: str) -> None:
    with pytest.raises(DataError, match=rf"photograph {path} is none of ILSVRC2012_val_00000001 to 00000003.*null"):
        labels_of_rows([[7], [8], [9]], manifest_of(path), "real.json")


def test_another_class_order_is_one_line() -> None:
    manifest = manifest_of("b/ILSVRC2012_val_00000001.JPEG", classes=["b", "a"])
    with pytest.raises(DataError, match=r"the data set has 2 classes, b, a, .*class_map: imagenet-1k"):
        labels_of_rows([[0]], manifest, "real.json")


def test_what_is_not_the_file_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "real.json"
    with pytest.raises(DataError, match=r"real.json: no such file. Put real.json of .*reassessed-imagenet"):
        find_real_labels("real.json", tmp_path)
    with pytest.raises(DataError, match="package 'nothing_of_this_name' is not installed"):
        find_real_labels("package:nothing_of_this_name/real.json", tmp_path)
    whole = json.dumps([[1], [], [2, 3]])
    file.write_text(whole)
    digest = hashlib.sha256(whole.encode()).hexdigest()
    assert find_real_labels("real.json", tmp_path) == file
    assert read_real_labels(file, len(whole), digest) == [[1], [], [2, 3]]
    file.write_text(whole[:-3])  # half-written
    with pytest.raises(DataError, match=f"{len(whole) - 3} bytes, expected {len(whole)}"):
        read_real_labels(file, len(whole), digest)
    with pytest.raises(DataError, match="no JSON"):
        read_real_labels(file)
    file.write_text(whole.replace("3", "4"))
    with pytest.raises(DataError, match=f"the configuration states {digest[:16]}"):
        read_real_labels(file, len(whole), digest)
    for other in ("{}", "[1, 2]", '[["a"]]', "[[-1]]", "[[true]]"):
        file.write_text(other)
        with pytest.raises(DataError, match="expected a JSON list with a list of class indices"):
            read_real_labels(file)
