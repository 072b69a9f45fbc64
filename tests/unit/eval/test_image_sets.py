"""Further test sets: which class a folder is, by name, number or map; and what is no such set."""

from __future__ import annotations

from pathlib import Path

import pytest

from tokenlabel.core.errors import DataError
from tokenlabel.eval.test_sets import ImageSet, columns_of, open_image_set

CLASSES = tuple(f"n{number:08d}" for number in range(12))


def folders(root: Path, *names: str, images: int = 1) -> Path:
    for name in names:
        (root / name).mkdir(parents=True)
        for number in range(images):
            (root / name / f"{number}.jpg").write_bytes(b"listed, never decoded")
    return root


def class_of(chosen: ImageSet) -> dict[str, int]:
    """Folder -> the model's class."""
    columns = chosen.columns or range(len(CLASSES))
    return {
        chosen.manifest.path(row).split("/")[0]: columns[int(chosen.manifest.class_index[row])]
        for row in range(len(chosen.manifest))
    }


def test_folders_by_name_are_measured_among_themselves(tmp_path: Path) -> None:
    chosen = open_image_set(folders(tmp_path, CLASSES[7], CLASSES[2]), "names", CLASSES, title="set")
    assert chosen.columns == (2, 7)
    assert chosen.manifest.classes == (CLASSES[2], CLASSES[7])
    assert class_of(chosen) == {CLASSES[2]: 2, CLASSES[7]: 7}


def test_all_classes_leave_nothing_out(tmp_path: Path) -> None:
    chosen = open_image_set(folders(tmp_path, *CLASSES, images=2), "names", CLASSES, title="set", images=24)
    assert chosen.columns is None
    assert chosen.manifest.classes == CLASSES


def test_numbered_folders_are_numbers_and_not_words(tmp_path: Path) -> None:
    """ImageNet-V2's folders: in lexicographic order 10 stands before 2."""
    chosen = open_image_set(folders(tmp_path, *map(str, range(12))), "index", CLASSES, title="set")
    assert class_of(chosen) == {str(number): number for number in range(12)}
    part = open_image_set(folders(tmp_path / "part", "10", "2"), "index", CLASSES, title="set")
    assert (part.columns, class_of(part)) == ((2, 10), {"2": 2, "10": 10})


def test_folders_of_other_names_by_a_map(tmp_path: Path) -> None:
    place = folders(tmp_path / "set", "cat", "kitten", "dog")
    (tmp_path / "map.txt").write_text(
        f"cat {CLASSES[5]}\nkitten {CLASSES[5]}\n\ndog {CLASSES[1]}\nunused {CLASSES[0]}\n"
    )
    chosen = open_image_set(place, "file:map.txt", CLASSES, title="set", maps=tmp_path)
    assert class_of(chosen) == {"cat": 5, "kitten": 5, "dog": 1}
    assert chosen.columns == (1, 5)


@pytest.mark.parametrize(
    ("names", "rule", "message"),
    [
        (("cat", CLASSES[0]), "names", "set: .*: folder cat is not a class .n00000000, n00000001, ..... Rename"),
        (("a", "b", "c", "d", "e"), "names", "folder a, b, c and 2 more are not a class"),
        (("12",), "index", "folder 12 is not a class index, 0 to 11"),
        (("cat",), "file:map.txt", "map.txt: cannot be read"),
        (("cat",), "file:wrong.txt", "wrong.txt, line 2: 'cat n99999999', expected FOLDER CLASS"),
        (("cat",), "file:other.txt", "folder cat is not in .*other.txt"),
    ],
)
def test_a_folder_that_is_no_class_is_one_line(tmp_path: Path, names: tuple[str, ...], rule: str, message: str) -> None:
    (tmp_path / "wrong.txt").write_text(f"dog {CLASSES[1]}\ncat n99999999\n")
    (tmp_path / "other.txt").write_text(f"dog {CLASSES[1]}\n")
    with pytest.raises(DataError, match=message) as caught:
        open_image_set(folders(tmp_path / "set", *names), rule, CLASSES, title="set", maps=tmp_path)
    assert "\n" not in str(caught.value)


def test_what_is_no_set_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"test set a: .*gone: no such folder on this machine. Put it there"):
        open_image_set(tmp_path / "gone", "names", CLASSES, title="test set a")
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="no class folders"):
        open_image_set(tmp_path / "empty", "names", CLASSES, title="set")
    place = folders(tmp_path / "set", CLASSES[0])
    (place / CLASSES[1]).mkdir()
    with pytest.raises(DataError, match="folder n00000001 without a photograph"):
        open_image_set(place, "names", CLASSES, title="set")
    (place / CLASSES[1]).rmdir()
    with pytest.raises(DataError, match=r"1 photographs, expected 7500. Unpack the set again"):
        open_image_set(place, "names", CLASSES, title="set", images=7500)


def test_a_data_set_of_some_of_a_checkpoints_classes() -> None:
    assert columns_of(CLASSES, CLASSES, "x.pth") is None
    assert columns_of([CLASSES[4], CLASSES[1]], CLASSES, "x.pth") == (4, 1)
    with pytest.raises(DataError, match=r"checkpoint x.pth: it knows 12 classes .*folder cat of the data set"):
        columns_of([CLASSES[4], "cat"], CLASSES, "x.pth")
