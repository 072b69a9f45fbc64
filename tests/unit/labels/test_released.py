"""The released layout: hostile files run nothing, and what the released loader makes of an export."""

from __future__ import annotations

import io
import os
import pickle
import shutil
import tarfile
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torchvision.ops import roi_align

from tokenlabel.core.errors import LabelError
from tokenlabel.labels.released import ReleasedTree, parse_released, released_name, shared_names, write_released
from tokenlabel.labels.targets import pooled_target, sparse_targets

K, SIDE, CLASSES = 3, 8, 50


def some_map(seed: int = 0) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    rng = np.random.default_rng(seed)
    scores = -np.sort(-rng.normal(4, 2, (SIDE, SIDE, K)), axis=-1)
    classes = np.stack([rng.permutation(CLASSES)[:K] for _ in range(SIDE * SIDE)]).reshape(SIDE, SIDE, K)
    return scores.astype(np.float16), classes.astype(np.uint16)


def saved(value: Any, **options: Any) -> bytes:
    buffer = io.BytesIO()
    torch.save(value, buffer, **options)
    return buffer.getvalue()


def plane(scores: Any, classes: Any) -> torch.Tensor:
    """As the released generator stacks it: (2, k, H, W)."""
    return torch.from_numpy(np.stack([scores, classes.astype(np.float16)])).permute(0, 3, 1, 2).contiguous()


# --- names ---


def test_names_are_cut_as_the_released_loader_cuts_them() -> None:
    assert released_name("n01440764/n01440764_10.JPEG") == "n01440764/n01440764_10.pt"
    assert released_name("a/b/c/photo.x.y.jpg") == "c/photo.pt"
    assert released_name("v1.0/photo.jpg") == "v1.pt"
    assert shared_names(["c/a.1.jpg", "c/a.2.jpg", "c/b.jpg"]) == {"c/a.pt": ["c/a.1.jpg", "c/a.2.jpg"]}


# --- reading ---


@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize("legacy", [False, True])
def test_what_is_written_is_read_again(tmp_path: Path, transposed: bool, legacy: bool) -> None:
    scores, classes = some_map()
    write_released(tmp_path / "c" / "a.pt", scores, classes, transposed=transposed)
    content = (tmp_path / "c" / "a.pt").read_bytes()
    if legacy:
        content = saved(torch.load(io.BytesIO(content), weights_only=True), _use_new_zipfile_serialization=False)
    read = parse_released(content, "a.pt", CLASSES)
    for values, expected in zip(read, (scores, classes), strict=True):
        np.testing.assert_array_equal(values.transpose(1, 0, 2) if transposed else values, expected)
    assert read[1].dtype == np.uint16


def test_scores_out_of_order_are_sorted_with_their_classes() -> None:
    scores, classes = some_map()
    read = parse_released(saved(plane(scores[..., ::-1].copy(), classes[..., ::-1].copy())), "a.pt", CLASSES)
    np.testing.assert_array_equal(read[0], scores)
    np.testing.assert_array_equal(read[1], classes)


class Bomb:
    """Unpickled, it makes a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return os.mkdir, (str(self.path),)


@pytest.mark.parametrize("how", ["plain pickle", "zip", "legacy", "beside a tensor"])
def test_no_code_in_a_file_is_run(tmp_path: Path, how: str) -> None:
    bomb = Bomb(tmp_path / "exploded")
    content = {
        "plain pickle": lambda: pickle.dumps(bomb),
        "zip": lambda: saved(bomb),
        "legacy": lambda: saved(bomb, _use_new_zipfile_serialization=False),
        "beside a tensor": lambda: saved([plane(*some_map()), bomb]),
    }[how]()
    with pytest.raises(
        LabelError, match=r"evil\.pt: cannot be read as a tensor \(it wants to run code, which is refused"
    ) as caught:
        parse_released(content, "evil.pt", CLASSES)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "exploded").exists()
    if how == "zip":  # the file is dangerous indeed: opened without care it does explode
        torch.load(io.BytesIO(content), weights_only=False)
        assert (tmp_path / "exploded").exists()


def spoiled(name: str) -> bytes:
    scores, classes = some_map()
    good = plane(scores, classes)
    if name == "not finite":
        good[0, 1, 2, 3] = float("inf")
    elif name == "class too large":
        good[1, 1, 2, 3] = CLASSES
    elif name == "class negative":
        good[1, 1, 2, 3] = -1
    elif name == "class no number":
        good[1, 1, 2, 3] = float("nan")
    elif name == "class not whole":
        good[1, 1, 2, 3] = 3.5
    elif name == "class twice":
        good[1, 1, 2, 3] = good[1, 0, 2, 3]
    values: dict[str, Any] = {
        "float32": good.float(),
        "three axes": good[0],
        "three planes": torch.cat([good, good[:1]]),
        "empty": good[:, :, :0],
        "a dictionary": {"scores": good},
        "sparse": good.to_sparse(),
        "terabytes by strides of 0": torch.zeros(1, dtype=torch.float16).expand(2, 4096, 4096, 4096),
    }
    content = saved(values.get(name, good))
    return {"cut off": content[:-300], "text": b"not a tensor", "nothing": b""}.get(name, content)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("not finite", "a logit is not finite"),
        ("class too large", "class id 50, expected a whole number from 0 to 49"),
        ("class negative", "class id -1"),
        ("class no number", "class id nan"),
        ("class not whole", "class id 3.5"),
        ("class twice", "a class stands twice in one cell"),
        ("float32", r"holds float32 \(2, 3, 8, 8\), expected float16"),
        ("three axes", "expected float16"),
        ("three planes", "expected float16"),
        ("empty", "expected float16"),
        ("a dictionary", "holds a dict, expected one float16 tensor"),
        ("sparse", "expected one float16 tensor"),
        ("terabytes by strides of 0", "promises .* more than its"),
        ("cut off", "cannot be read as a tensor"),
        ("text", "cannot be read as a tensor"),
        ("nothing", "cannot be read as a tensor"),
    ],
)
def test_a_file_that_is_no_label_is_refused(name: str, message: str) -> None:
    with pytest.raises(LabelError, match=message) as caught:
        parse_released(spoiled(name), "x.pt", CLASSES)
    assert str(caught.value).startswith("x.pt: ")
    assert "\n" not in str(caught.value)


def test_a_file_of_another_shape_is_refused() -> None:
    with pytest.raises(LabelError, match=r"\(H, W, k\) \(8, 8, 3\), those before it are \(9, 9, 3\)"):
        parse_released(saved(plane(*some_map())), "x.pt", CLASSES, (9, 9, 3))


# --- trees ---


def pack(folder: Path, kind: str) -> Path:
    if kind == "folder":
        return folder
    target = folder.with_suffix(f".{kind}")
    if kind == "zip":
        with zipfile.ZipFile(target, "w", zipfile.ZIP_DEFLATED) as archive:
            for path in sorted(folder.rglob("*.pt")):
                archive.write(path, f"top/{path.relative_to(folder)}")
    else:
        with tarfile.open(target, "w:gz" if kind == "tar.gz" else "w") as archive:
            archive.add(folder, "./label_top5")
    return target


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    for index in range(5):
        write_released(tmp_path / "tree" / f"c{index % 2}" / f"photo{index}.pt", *some_map(index), transposed=False)
    return tmp_path / "tree"


@pytest.mark.parametrize("kind", ["folder", "tar", "zip"])
def test_a_tree_is_read_without_unpacking(tree: Path, kind: str) -> None:
    released = ReleasedTree(pack(tree, kind))
    for index in (4, 0, 3):
        name = f"c{index % 2}/photo{index}.pt"
        assert name in released
        scores, _ = parse_released(released.read(name), released.where(name), CLASSES)
        np.testing.assert_array_equal(scores, some_map(index)[0])
    for absent in ("c0/photo1.pt", "c9/photo0.pt", "photo0.pt"):
        assert absent not in released


def test_a_cut_off_archive_and_other_files_are_refused(tree: Path) -> None:
    archive = pack(tree, "tar")
    content = archive.read_bytes()
    with tarfile.open(archive) as opened:
        last = opened.getmembers()[-1]
    archive.write_bytes(content[: last.offset_data + 100])
    with pytest.raises(LabelError, match="cut off"):
        ReleasedTree(archive)
    shutil.copy(pack(tree, "zip"), cut := tree.with_name("cut.zip"))
    cut.write_bytes(cut.read_bytes()[:-30])
    with pytest.raises(LabelError, match=r"cut\.zip: not a whole zip"):
        ReleasedTree(cut)
    with pytest.raises(LabelError, match="Unpack it, or take the compression off"):
        ReleasedTree(pack(tree, "tar.gz"))
    with pytest.raises(LabelError, match="no such folder or archive"):
        ReleasedTree(tree / "none")


def test_a_file_without_end_is_refused(tmp_path: Path) -> None:
    (tmp_path / "c").mkdir()
    (tmp_path / "c" / "a.pt").symlink_to("/dev/zero")
    with pytest.raises(LabelError, match="too large for a label"):
        ReleasedTree(tmp_path).read("c/a.pt")


def test_a_file_that_inflates_is_refused() -> None:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("archive/data.pkl", bytes(1 << 25))
    with pytest.raises(LabelError, match="too large for a label"):
        parse_released(buffer.getvalue(), "x.pt", CLASSES)


# --- what the released loader makes of an export ---


def released_targets(
    content: bytes, crop: tuple[int, int, int, int], size: tuple[int, int], tokens: int, flip: bool
) -> Any:
    """Token targets and class target as tlt 0.2.0 computes them, written anew from its arithmetic.

    Args:
        content: of a `.pt` file.
        crop: top, left, height, width in px of the (flipped) photograph.
        size: height and width of the photograph.
        tokens: per side.
        flip: whether it is flipped, which happens before it is cropped.
    """
    values, index = torch.load(io.BytesIO(content), weights_only=True).float()
    if flip:
        values, index = values.flip(2), index.flip(2)  # axis 3 of the file
    top, left, height, width = crop
    corners = (top / size[0], left / size[1], (top + height) / size[0], (left + width) / size[1])
    dense = torch.zeros(CLASSES, *values.shape[1:]).scatter_(0, index.long(), values)
    box = torch.tensor([[0, *(corner * values.shape[2] - 0.5 for corner in corners)]])
    aligned = [roi_align(dense[None], box, (side, side))[0].flatten(1).T.softmax(-1) for side in (tokens, 1)]
    return aligned[0], aligned[1][0]


def right_targets(
    scores: Any, classes: Any, crop: tuple[int, int, int, int], size: tuple[int, int], tokens: int, flip: bool
) -> Any:
    top, left, height, width = crop
    x0, x1 = left / size[1], (left + width) / size[1]
    if flip:  # the crop was taken from the mirrored photograph
        x0, x1 = 1 - x1, 1 - x0
    box = torch.tensor([[x0, top / size[0], x1, (top + height) / size[0]]])
    flipped = torch.tensor([flip])
    arrays = (scores[None], classes[None].astype(np.int32), box)
    target = sparse_targets(*arrays, grid=(tokens, tokens), num_classes=CLASSES, flipped=flipped).dense()[0]
    return target, pooled_target(*arrays, num_classes=CLASSES, flipped=flipped).dense()[0, 0]


WHOLE, PART, SIZE, TOKENS = (0, 0, 300, 400), (30, 200, 180, 160), (300, 400), 4


@pytest.mark.parametrize("crop", [WHOLE, PART])
@pytest.mark.parametrize("flip", [False, True])
@pytest.mark.parametrize("transposed", [False, True])
def test_what_the_released_loader_makes_of_an_export(
    tmp_path: Path, crop: tuple[int, int, int, int], flip: bool, transposed: bool
) -> None:
    """Exactly what the docstring of `released` says, no more and no less."""
    scores, classes = some_map()
    write_released(tmp_path / "c" / "a.pt", scores, classes, transposed=transposed)
    content = (tmp_path / "c" / "a.pt").read_bytes()
    tokens, pooled = released_targets(content, crop, SIZE, TOKENS, flip)
    right_tokens, right_pooled = right_targets(scores, classes, crop, SIZE, TOKENS, flip)
    turned = tokens.view(TOKENS, TOKENS, -1).transpose(0, 1).flatten(0, 1)

    def same(one: torch.Tensor, other: torch.Tensor) -> bool:
        return bool(torch.allclose(one, other, atol=1e-5))

    if transposed:
        assert same(turned, right_tokens) == (not flip), (
            "the region is right, its tokens are transposed; not where flipped"
        )
        assert same(pooled, right_pooled) == (not flip or crop == WHOLE)
        assert not same(tokens, right_tokens)
    else:
        assert same(tokens, right_tokens) == (crop == WHOLE), "right for the whole photograph, flipped or not"
        assert same(pooled, right_pooled) == (crop == WHOLE)


@pytest.mark.parametrize("flip", [False, True])
def test_the_mended_loader_and_the_right_axes_give_the_right_targets(tmp_path: Path, flip: bool) -> None:
    """Exchanging the loader's coordinates, which the help of `export` recommends, is the same as exchanging crop and size."""
    scores, classes = some_map()
    write_released(tmp_path / "c" / "a.pt", scores, classes, transposed=False)
    top, left, height, width = PART
    content = (tmp_path / "c" / "a.pt").read_bytes()
    tokens, pooled = released_targets(content, (left, top, width, height), (SIZE[1], SIZE[0]), TOKENS, flip)
    right_tokens, right_pooled = right_targets(scores, classes, PART, SIZE, TOKENS, flip)
    torch.testing.assert_close(tokens, right_tokens, atol=1e-5, rtol=0)
    torch.testing.assert_close(pooled, right_pooled, atol=1e-5, rtol=0)
