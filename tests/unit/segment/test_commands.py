"""The commands `segment evaluate` and `segment predict`: what they write, and one line for each mistake."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from tests.scenes import scene_machine, write_scene_manifests, write_scenes
from tokenlabel.cli import main
from tokenlabel.core.files import read_json, write_json
from tokenlabel.data.pixels import decode_upright
from tokenlabel.data.scene_pictures import class_colours
from tokenlabel.engine.device import choose_precision
from tokenlabel.models import create_model, describe_model, save_weights, write_model_config
from tokenlabel.models.segmentation import load_segmenter, save_segmenter
from tokenlabel.segment.evaluate_command import classes_csv
from tokenlabel.segment.predict_command import mask_picture
from tokenlabel.segment.start import build_segmenter
from tokenlabel.segment.testing import Look, ResizedScenes, measure_scenes, predict_classes

from .conftest import Workplace

CPU = torch.device("cpu")
CLASSES = ("wall", "sky", "tree")


@pytest.fixture
def seed_folder(spec: dict[str, Any], tmp_path: Path) -> Path:
    """What a training leaves, in weights that tell pixels apart."""
    model = build_segmenter(spec, None, 0)
    with torch.no_grad():
        model.head.classifier.weight.normal_()
    folder = tmp_path / "run" / "seed3"
    folder.mkdir(parents=True)
    save_segmenter(folder, model, spec, CLASSES, 3)
    write_json(folder / "done.json", {"digest": "1a2b3c4d", "seed": 3, "seconds": 5.0})
    return folder


@pytest.fixture
def classifier(spec: dict[str, Any], tmp_path: Path) -> Path:
    """A seed folder of a classification run."""
    folder = tmp_path / "classifier"
    folder.mkdir()
    model = create_model("lvvit_t", 3, 32, **spec["model"]["settings"])
    write_model_config(folder, describe_model(model, "lvvit_t", spec["model"]["settings"], CLASSES, crop=0.9))
    save_weights(model, folder / "model.safetensors", {})
    write_json(folder / "done.json", {"digest": "1a2b3c4d", "seed": 3, "seconds": 5.0})
    return folder


def evaluate(testing: dict[str, Any], workplace: Workplace, seed_folder: Path, out: Path, **changes: Any) -> int:
    write_json(out.parent / "testing.json", testing)
    write_json(out.parent / "machine.json", workplace.machine)
    options = {"manifest": workplace.root / "manifest", "run": seed_folder, "out": out} | changes
    words = [word for name, value in options.items() for word in (f"--{name}", str(value))]
    documents = ["--spec", str(out.parent / "testing.json"), "--machine", str(out.parent / "machine.json")]
    return main(["segment", "evaluate", *documents, *words])


def test_an_evaluation_writes_numbers_classes_and_a_page(
    testing: dict[str, Any], workplace: Workplace, seed_folder: Path, tmp_path: Path
) -> None:
    out = tmp_path / "evaluation-00000000.json"
    assert evaluate(testing, workplace, seed_folder, out) == 0
    found = read_json(out)
    assert (found["run"], found["seed"], found["images"], found["skipped"]) == ("1a2b3c4d", 3, 6, 0)
    model = load_segmenter(seed_folder).model
    assert found["parameters_m"] == pytest.approx(sum(weight.numel() for weight in model.parameters()) / 1e6)
    looks = Look.of_spec(testing)
    measured = measure_scenes(
        model, ResizedScenes(workplace.manifests["val"], workplace.machine, looks[0]), looks, workplace.machine,
        device=CPU, precision=torch.float32,
    ).confusions  # fmt: skip
    for name, confusion in zip(("single", "multi"), measured, strict=True):
        assert found[name]["miou"] == pytest.approx(confusion.miou, abs=1e-6)
        assert found[name]["pixel_accuracy"] == pytest.approx(confusion.pixel_accuracy, abs=1e-6)
    assert found["single"] != found["multi"]
    with open(tmp_path / "evaluation-00000000.classes.csv", encoding="utf-8", newline="") as file:
        table = list(csv.DictReader(file))
    assert [line["class"] for line in table] == list(CLASSES)
    assert [int(line["pixels"]) for line in table] == workplace.manifests["val"].class_pixels.tolist()
    assert [float(line["iou"]) for line in table] == pytest.approx(measured[0].class_iou.tolist(), abs=1e-4)
    assert [float(line["iou_multi"]) for line in table] == pytest.approx(measured[1].class_iou.tolist(), abs=1e-4)
    page = np.asarray(Image.open(tmp_path / "evaluation-00000000.png"))
    # a class's colour lies over the photograph where its mask is: the first scene's masked pixels are not grey
    assert page.shape[1] > 3 * 360
    assert len(np.unique(page.reshape(-1, 3), axis=0)) > 100


def test_at_one_scale_both_columns_are_the_same(
    testing: dict[str, Any], workplace: Workplace, seed_folder: Path, tmp_path: Path
) -> None:
    testing |= {"scales": [1.0], "flip": False}
    out = tmp_path / "one.json"
    assert evaluate(testing, workplace, seed_folder, out) == 0
    found = read_json(out)
    assert found["single"] == found["multi"]
    assert all(line["iou"] == line["iou_multi"] for line in found["classes"])


def test_scenes_of_ignored_pixels_only_have_no_measure_and_the_log_says_so(
    testing: dict[str, Any], seed_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The only scene with a class can no longer be read; the manifest would refuse a split that never had one."""
    write_scenes(tmp_path / "data", train=2, val=2)
    masks, images = (sorted((tmp_path / "data" / kind / "validation").iterdir()) for kind in ("annotations", "images"))
    Image.fromarray(np.zeros((40, 56), np.uint8)).save(masks[0])
    manifests = write_scene_manifests(tmp_path / "manifest", tmp_path / "data")
    images[1].write_bytes(b"x" * images[1].stat().st_size)
    place = Workplace(tmp_path, manifests, scene_machine(tmp_path / "data", segment_micro_batch=2))
    assert evaluate(testing, place, seed_folder, tmp_path / "none.json") == 0
    found = read_json(tmp_path / "none.json")
    assert (found["images"], found["skipped"]) == (1, 1)
    assert found["single"] == found["multi"] == {"miou": None, "pixel_accuracy": None}
    assert "single scale: mIoU none, pixel accuracy none of 1 scenes" in capsys.readouterr().err


def test_a_class_of_which_there_is_nothing_has_no_iou() -> None:
    lines = [{"name": "sea, open", "pixels": 0, "iou": None, "iou_multi": 0.0}]
    assert classes_csv(lines) == 'class,pixels,iou,iou_multi\n"sea, open",0,,0.0000\n'


def test_another_checkpoint_or_other_classes_are_one_line(
    spec: dict[str, Any], testing: dict[str, Any], workplace: Workplace, classifier: Path, tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    assert evaluate(testing, workplace, classifier, tmp_path / "a.json") == 2
    assert "config.json: of a classifier" in capsys.readouterr().err
    other = tmp_path / "other"
    other.mkdir()
    save_segmenter(other, build_segmenter(spec, None, 0), spec, ("a", "b", "c"), 0)
    write_json(other / "done.json", {"digest": "1a2b3c4d", "seed": 0, "seconds": 5.0})
    assert evaluate(testing, workplace, other, tmp_path / "a.json") == 2
    assert "its 3 classes (a, b, c) are not the scenes' 3 classes (wall, sky, tree)" in capsys.readouterr().err
    assert evaluate(testing, workplace, tmp_path / "nowhere", tmp_path / "a.json") == 2
    assert "done.json: the run's marker is missing" in capsys.readouterr().err
    assert not (tmp_path / "a.json").exists()


def test_a_prediction_gives_every_pixel_of_every_photograph_a_class(
    workplace: Workplace, seed_folder: Path, tmp_path: Path
) -> None:
    photographs = tmp_path / "mine"
    (photographs / "sub").mkdir(parents=True)
    source = sorted((workplace.root / "data" / "images" / "validation").iterdir())[0]
    Image.open(source).resize((90, 70)).save(photographs / "sub" / "large.png")
    Image.open(source).resize((21, 17)).save(photographs / "small.jpg")
    (photographs / "torn.png").write_bytes(b"no picture")
    out = tmp_path / "out"
    assert main(["segment", "predict", str(seed_folder), str(photographs), "--out", str(out)]) == 1  # one is torn
    assert {path.relative_to(out).as_posix() for path in out.rglob("*.*")} == {
        "classes.csv", "sub/large.png.mask.png", "sub/large.png.overlay.png", "small.jpg.mask.png", "small.jpg.overlay.png",
    }  # fmt: skip
    model = load_segmenter(seed_folder).model
    look = Look("slide", 32, 21, 40)
    for name, size in (("sub/large.png", (70, 90)), ("small.jpg", (17, 21))):
        ids = np.asarray(Image.open(out / f"{name}.mask.png"))
        image = decode_upright((photographs / name).read_bytes())
        expected = predict_classes(
            model, look.resized(image), size, look, device=CPU, precision=choose_precision("auto", CPU), batch=2
        )
        assert np.array_equal(ids, expected.numpy())
        height, width = np.asarray(Image.open(out / f"{name}.overlay.png")).shape[:2]
        assert width == size[1] if size[1] > 80 else width > size[1]  # the names have to fit
        assert height > size[0]
    with open(out / "classes.csv", encoding="utf-8", newline="") as file:
        table = list(csv.DictReader(file))
    assert [(line["id"], line["class"]) for line in table] == [("0", "wall"), ("1", "sky"), ("2", "tree")]
    shown = np.asarray(Image.open(out / "sub/large.png.mask.png").convert("RGB"))
    assert np.array_equal(shown, class_colours(3)[np.asarray(Image.open(out / "sub/large.png.mask.png"))])


def test_scales_and_mirror_images_change_what_is_said(workplace: Workplace, seed_folder: Path, tmp_path: Path) -> None:
    source = workplace.root / "data" / "images" / "validation" / "scene_000.png"
    ids = []
    for number, words in enumerate(([], ["--scales", "0.75", "1.5", "--flip"], ["--whole"])):
        out = tmp_path / str(number)
        assert main(["segment", "predict", str(seed_folder), str(source), "--out", str(out), *words]) == 0
        ids.append(np.asarray(Image.open(out / "scene_000.png.mask.png")))
    assert not np.array_equal(ids[0], ids[1])
    assert not np.array_equal(ids[0], ids[2])


def test_many_classes_take_sixteen_bits(tmp_path: Path) -> None:
    ids = np.array([[0, 299], [256, 1]])
    mask_picture(ids, 300).save(tmp_path / "mask.png")
    assert np.array_equal(np.asarray(Image.open(tmp_path / "mask.png")), ids)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--batch", "0"], "--batch 0: must be at least 1"),
        (["--scales", "1.0", "90"], "--scales 90: must be between 0.1 and 8"),
        (["--out", "{photographs}/out"], "lies within"),
    ],
    ids=["batch", "scales", "out"],
)
def test_arguments_out_of_range_are_one_line(
    workplace: Workplace, seed_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], words: list[str], said: str
) -> None:  # fmt: skip
    photographs = workplace.root / "data" / "images" / "validation"
    words = [word.format(photographs=photographs) for word in words]
    code = main(["segment", "predict", str(seed_folder), str(photographs), "--out", str(tmp_path / "out"), *words])
    assert code == 2
    assert said in capsys.readouterr().err


def test_photographs_that_there_are_not_and_a_classifier_are_one_line(
    seed_folder: Path, classifier: Path, workplace: Workplace, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "empty").mkdir()
    source = str(workplace.root / "data" / "images" / "validation")
    for checkpoint, photographs, said in (
        (seed_folder, str(tmp_path / "nowhere"), "nowhere: no such folder or photograph"),
        (seed_folder, str(tmp_path / "empty"), "empty: no image files"),
        (classifier, source, "config.json: of a classifier"),
    ):
        assert main(["segment", "predict", str(checkpoint), photographs, "--out", str(tmp_path / "out")]) == 2
        assert said in capsys.readouterr().err
