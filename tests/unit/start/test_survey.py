"""A folder of one's own photographs is described rightly, or refused in one line."""

from __future__ import annotations

import importlib.util
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image

from tokenlabel.core.errors import DataError
from tokenlabel.start.survey import survey_folder

_SPEC = importlib.util.find_spec("foolbox")  # not imported: its own imports warn
assert _SPEC is not None
assert _SPEC.origin is not None
PHOTOGRAPHS = sorted((Path(_SPEC.origin).parent / "data").glob("imagenet_*.jpg"))


def _folder(root: Path) -> Path:
    for row, name in enumerate(["Bär", "my dog", "bird"]):
        (root / name).mkdir(parents=True)
        for photograph in PHOTOGRAPHS[3 * row : 3 * row + 3]:
            shutil.copy(photograph, root / name)
    return root


def _remove(*paths: Path) -> bool:
    for path in paths:
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink()
    return True


def test_broken_and_doubled_photographs_are_named(tmp_path: Path) -> None:
    root = _folder(tmp_path / "my photos")
    (root / "bird" / "broken.jpg").write_bytes(b"<html>")
    shutil.copy(PHOTOGRAPHS[0], root / "bird" / "again.jpg")
    with Image.open(PHOTOGRAPHS[4]) as picture:
        picture.save(root / "my dog" / "near.jpg", quality=60)
    survey = survey_folder(root)
    assert survey.counts == {"Bär": 3, "bird": 4, "my dog": 4}
    assert survey.broken == ("bird/broken.jpg",)
    assert survey.cross_class == ((f"Bär/{PHOTOGRAPHS[0].name}", "bird/again.jpg"),)
    assert [len(group) for group in survey.near_duplicates] == [2, 2]
    assert (survey.train, survey.val) == (9, 3)  # a pair of near-duplicates stays on one side
    assert survey.formats == {"JPEG": 11}


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda root: shutil.rmtree(root), "no such folder"),
        (lambda root: _remove(*root.iterdir()), "0 class folders"),
        (lambda root: _remove(root / "bird", root / "Bär"), "1 class folders"),
        (lambda root: shutil.copy(PHOTOGRAPHS[0], root / "beside.jpg"), "beside the class folders"),
        (lambda root: shutil.copytree(root / "bird", root / "bird" / "inner"), "below a class folder"),
        (lambda root: [path.write_bytes(b"") for path in (root / "bird").iterdir()], "has 0 readable photographs"),
        (lambda root: _remove(*sorted((root / "bird").iterdir())[1:]), "has 1 readable photographs"),
    ],
    ids=["missing", "empty", "one class", "beside", "nested", "unreadable class", "one photograph"],
)
def test_unusable_folders_are_refused_in_one_line(
    tmp_path: Path, spoil: Callable[[Path], object], message: str
) -> None:
    root = _folder(tmp_path / "photos")
    spoil(root)
    with pytest.raises(DataError, match=message) as caught:
        survey_folder(root)
    assert "\n" not in str(caught.value)
