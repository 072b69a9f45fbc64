"""`tokenlabel visualise`: one page of real photographs, relevance of the classes that are named, one-line refusals."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from tokenlabel.cli import main
from tokenlabel.data.images import decode_image, resize_and_centre_crop, to_tensor
from tokenlabel.demo.photographs import find_photographs
from tokenlabel.eval.drawing import lay_heat
from tokenlabel.eval.prediction import Preprocessing
from tokenlabel.eval.relevance import relevance_maps
from tokenlabel.eval.visualisation import look_at
from tokenlabel.models import TokenModel, create_model, describe_model, save_weights, write_model_config

LVVIT = {"depth": 2, "width": 32, "heads": 2}
CLASSES = ["n02124075", "dog", "bird", "fish"]
PANEL_PX = 390  # PANEL_IN at 150 px an inch


def save_run(folder: Path, name: str, image_px: int, **settings: object) -> TokenModel:
    """A seed folder as a training leaves it, random weights that tell classes apart."""
    torch.manual_seed(0)
    model = create_model(name, len(CLASSES), image_px, **settings)
    with torch.no_grad():
        for head in model.head_names:
            model.get_submodule(head).weight.normal_()  # type: ignore[operator,union-attr]
    save_weights(model, folder / "model.safetensors", {"spec_digest": "00000000"})
    write_model_config(folder, describe_model(model, name, settings, CLASSES, crop=0.9))
    return model.eval()


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("run")
    save_run(folder, "lvvit_t", 64, **LVVIT)
    return folder


@pytest.fixture
def photographs() -> list[Path]:
    return [path for _, path in find_photographs()[:3]]


def draw(capfd: pytest.CaptureFixture[str], *arguments: object) -> tuple[int, list[str]]:
    code = main(["visualise", *map(str, arguments), "--device", "cpu"])
    return code, capfd.readouterr().err.splitlines()


@pytest.mark.parametrize(("classes", "columns"), [("2", 4), ("9", 6)])
def test_page_has_a_row_per_photograph_and_a_column_per_class(
    run: Path, photographs: list[Path], tmp_path: Path, capfd: pytest.CaptureFixture[str], classes: str, columns: int
) -> None:
    out = tmp_path / "new" / "page.png"
    code, lines = draw(capfd, run, *photographs[:2], "--out", out, "--classes", classes)
    assert code == 0
    assert "2 photographs" in lines[-1]
    with Image.open(out) as page:
        page.load()
        assert page.format == "PNG"
        assert page.width == pytest.approx(columns * PANEL_PX, rel=0.05)
        assert page.height > 2 * PANEL_PX
        # the relevance columns are in colours, and not one flat colour
        assert np.asarray(page.convert("RGB"))[..., :3].std() > 20


def test_relevance_is_of_the_classes_that_are_named(run: Path, photographs: list[Path]) -> None:
    model = save_run(run, "lvvit_t", 64, **LVVIT)
    where = {"count": 3, "with_relevance": True, "device": torch.device("cpu")}
    sights = look_at(model, photographs, Preprocessing(0.9, "bicubic"), **where)
    again = look_at(model, photographs, Preprocessing(0.9, "bicubic"), **where)
    for sight, same, path in zip(sights, again, photographs, strict=True):
        assert sight.prediction.path == path
        probability = sight.prediction.probability[sight.classes]
        assert (np.diff(probability) <= 0).all()
        assert probability[0] == sight.prediction.probability.max()
        assert sight.relevance is not None
        assert sight.relevance.shape == (3, *model.grid)
        assert np.isfinite(sight.relevance).all()
        np.testing.assert_array_equal(sight.relevance, same.relevance)
        square = resize_and_centre_crop(decode_image(path.read_bytes()), 64, 0.9, "bicubic")
        expected = relevance_maps(
            model, to_tensor(square, model.mean, model.std)[None], torch.from_numpy(sight.classes)[None]
        )
        np.testing.assert_array_equal(sight.relevance, expected[0].numpy())
    assert not np.allclose(sights[0].relevance, sights[1].relevance, rtol=0.1)


def test_folders_give_their_share(
    run: Path, photographs: list[Path], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    folder = photographs[0].parent
    code, lines = draw(capfd, run, photographs[0], folder, "--count", 2, "--out", tmp_path / "page.png")
    assert code == 0
    assert "3 photographs" in lines[-1]


def test_deit_gets_relevance_maps_and_a_cnn_its_class_maps_alone(
    photographs: list[Path], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    for name, columns, said in [("timm/deit_tiny_patch16_224", 4, 0), ("timm/resnet10t", 2, 1)]:
        folder = tmp_path / name
        save_run(folder, name, 64)
        code, lines = draw(capfd, folder, photographs[0], "--out", folder / "page.png")
        assert code == 0
        assert sum("no relevance maps of this model: it is a ResNet" in line for line in lines) == said
        with Image.open(folder / "page.png") as page:
            assert page.width == pytest.approx(columns * PANEL_PX, rel=0.05)


def test_a_token_head_that_has_no_say_is_mentioned(
    photographs: list[Path], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    save_run(tmp_path, "lvvit_t", 64, **LVVIT, token_score_weight=0.0)
    _, lines = draw(capfd, tmp_path, photographs[0], "--out", tmp_path / "page.png")
    assert any("may be untrained" in line for line in lines)


def test_heat_is_bright_where_the_value_is_large() -> None:
    values = np.zeros((4, 4), dtype=np.float32)
    values[0, 3] = 5.0  # top right
    light = np.asarray(lay_heat(Image.new("RGB", (80, 80), (90, 90, 90)), values).convert("L")).astype(float)
    assert np.unravel_index(light.argmax(), light.shape)[0] < 20
    assert np.unravel_index(light.argmax(), light.shape)[1] >= 60
    assert light[70, 10] == light.min()
    flat = np.asarray(lay_heat(Image.new("RGB", (8, 8)), np.full((2, 2), 0.3, dtype=np.float32)))
    assert (flat == flat[0, 0]).all()


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["{run}", "{here}/none.jpg"], "none.jpg: no such photograph or folder"),
        (["{run}", "{here}/empty"], "no image files"),
        (["{run}", "{here}/broken.jpg"], "broken.jpg: cannot be decoded"),
        (["{here}/no_run", "{good}"], "no_run"),
        (["{run}", "{good}", "--classes", "0"], "--classes 0: must be at least 1"),
        (["{run}", "{good}", "--count", "0"], "--count 0: must be at least 1"),
        (["{run}", "{good}", "--crop", "1.5"], "--crop 1.5"),
        (["{run}", "{good}", "--out", "{here}/broken.jpg/page.png"], "cannot be written"),
    ],
)
def test_mistakes_are_one_line(
    run: Path,
    photographs: list[Path],
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
    arguments: list[str],
    said: str,
) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "broken.jpg").write_bytes(b"not a photograph")
    places = {"run": run, "here": tmp_path, "good": photographs[0]}
    filled = [argument.format(**places) for argument in arguments]
    code, lines = draw(capfd, *filled, *([] if "--out" in filled else ["--out", tmp_path / "page.png"]))
    assert code == 2
    errors = [line for line in lines if line.startswith("error: ")]
    assert len(errors) == 1
    assert said in errors[0]
    assert lines[-1] == errors[0]
    assert not (tmp_path / "page.png").exists()
