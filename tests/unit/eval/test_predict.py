"""`tokenlabel predict`: a line for every photograph, maps that say what they cover, and one-line refusals."""

from __future__ import annotations

import csv
import io
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from tokenlabel.cli import main
from tokenlabel.data.images import decode_image, resize_and_centre_crop, to_tensor
from tokenlabel.models import TokenModel, create_model, load_model, save_weights
from tokenlabel.models.model_config import describe_model, write_model_config

SETTINGS = {"depth": 1, "width": 32, "heads": 2}


@pytest.fixture
def trained(tmp_path: Path) -> Path:
    """A seed folder as a training leaves it, with random weights that tell tokens apart."""
    torch.manual_seed(0)
    model = create_model("lvvit_t", 3, 64, **SETTINGS)
    with torch.no_grad():
        for head in (model.get_submodule(name) for name in model.head_names):
            head.weight.normal_()  # type: ignore[operator,union-attr]
    folder = tmp_path / "run" / "seed0"
    save_weights(model, folder / "model.safetensors", {"spec_digest": "00000000"})
    write_model_config(folder, describe_model(model, "lvvit_t", SETTINGS, ["cat", "dog", "bird"], crop=0.8))
    return folder


@pytest.fixture
def mine(photographs: Path, tmp_path: Path) -> Path:
    """Two photographs, one of them in a subfolder and not square, and a file that is none."""
    source = sorted((photographs / "val").rglob("*.jpg"))[:2]
    folder = tmp_path / "mine"
    (folder / "holiday").mkdir(parents=True)
    with Image.open(source[0]) as picture:
        picture.crop((0, 0, picture.width, picture.height * 2 // 3)).save(folder / "holiday" / "one.jpg", quality=95)
    (folder / "two.jpg").write_bytes(source[1].read_bytes())
    (folder / "broken.jpg").write_bytes(b"not a photograph")
    return folder


def by_hand(model: TokenModel, path: Path, crop: float) -> tuple[torch.Tensor, torch.Tensor]:
    """Class probabilities and class maps of one photograph."""
    square = resize_and_centre_crop(decode_image(path.read_bytes()), 64, crop, "bicubic")
    images = to_tensor(square, model.mean, model.std)[None]
    with torch.no_grad():
        logits = model.eval()(images)
    return logits.softmax(-1)[0], model.predict_tokens(images)[0]


@pytest.mark.parametrize("batch", ["1", "2", "8"])
def test_every_photograph_has_a_line(trained: Path, mine: Path, tmp_path: Path, batch: str) -> None:
    out = tmp_path / "p.csv"
    assert main(["predict", str(trained), str(mine), "--out", str(out), "--batch", batch, "--device", "cpu"]) == 1
    rows = {row["path"]: row for row in csv.DictReader(out.read_text().splitlines())}
    assert list(rows) == ["broken.jpg", "holiday/one.jpg", "two.jpg"]
    assert "cannot identify" in rows["broken.jpg"]["error"]
    assert rows["broken.jpg"]["class_1"] == ""
    loaded = load_model(trained)
    for name in ("holiday/one.jpg", "two.jpg"):
        probability, _ = by_hand(loaded.model, mine / name, 0.8)
        assert rows[name]["error"] == ""
        for rank, index in enumerate(probability.argsort(descending=True).tolist(), 1):
            assert rows[name][f"class_{rank}"] == loaded.classes[index]
            assert float(rows[name][f"confidence_{rank}"]) == pytest.approx(probability[index].item(), abs=0.02)  # bf16


def test_maps_say_what_they_show_and_cover(trained: Path, mine: Path, tmp_path: Path) -> None:
    maps = tmp_path / "maps"
    main(["predict", str(trained), str(mine), "--out", str(tmp_path / "p.csv"), "--maps", str(maps), "--crop", "0.5"])
    with np.load(maps / "holiday" / "one.jpg.npz") as file:
        stored = dict(file)
    assert stored["class_names"].tolist() == ["cat", "dog", "bird"]
    assert stored["classes"].shape == stored["probabilities"].shape == (4, 4, 3)
    _, expected = by_hand(load_model(trained).model, mine / "holiday" / "one.jpg", 0.5)
    dense = np.zeros((4, 4, 3), dtype=np.float32)
    np.put_along_axis(dense, stored["classes"].astype(np.int64), stored["probabilities"].astype(np.float32), axis=-1)
    np.testing.assert_allclose(dense, expected.permute(1, 2, 0).numpy(), atol=0.02)
    with Image.open(mine / "holiday" / "one.jpg") as picture:
        width, height = picture.size
    x0, y0, x1, y1 = stored["box"]
    assert ((x1 - x0) * width, (y1 - y0) * height) == pytest.approx((height / 2, height / 2))  # of the shorter side
    assert (x0 + x1, y0 + y1) == pytest.approx((1, 1))
    with Image.open(maps / "holiday" / "one.jpg.png") as drawn:
        assert drawn.height > drawn.width  # the names stand below the square
        assert drawn.width == 256
    assert not list(maps.rglob("broken*"))


def test_one_photograph_and_fewer_classes(trained: Path, mine: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["predict", str(trained / "model.safetensors"), str(mine / "two.jpg"), "--top", "1"]) == 0
    (row,) = csv.DictReader(io.StringIO(capsys.readouterr().out))
    assert list(row) == ["path", "class_1", "confidence_1", "error"]
    assert row["path"] == "two.jpg"


def test_a_published_file_at_another_size(mine: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    torch.manual_seed(0)
    state = create_model("timm/resnet18", 4, 64).state_dict()
    torch.save({"state_dict": {n.removeprefix("backbone."): v for n, v in state.items() if "token" not in n}},
               tmp_path / "published.pth.tar")  # fmt: skip
    arguments = ["predict", str(tmp_path / "published.pth.tar"), str(mine / "two.jpg")]
    assert main([*arguments, "--architecture", "timm/resnet18", "--image-px", "96"]) == 0
    (row,) = csv.DictReader(io.StringIO(capsys.readouterr().out))
    assert {row[f"class_{rank}"] for rank in (1, 2, 3, 4)} == {"0", "1", "2", "3"}
    assert main(arguments) == 2
    assert "Give the architecture" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["RUN", "nowhere"], "nowhere: no such folder or photograph"),
        (["RUN", "EMPTY"], "no image files"),
        (["none.safetensors", "MINE"], "none.safetensors"),
        (["RUN", "MINE", "--crop", "0"], "--crop 0.0: must be above 0 and at most 1"),
        (["RUN", "MINE", "--top", "0"], "--top 0: must be at least 1"),
        (["RUN", "MINE", "--image-px", "70"], "70"),
        (["RUN", "MINE", "--architecture", "lvvit_s"], "lvvit_s"),
        (["RUN", "MINE", "--maps", "MINE/maps"], "lies within"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_mistakes_are_one_line(
    arguments: list[str], message: str, trained: Path, mine: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "empty").mkdir()
    places = {"RUN": str(trained), "MINE": str(mine), "EMPTY": str(tmp_path / "empty"), "MINE/maps": str(mine / "maps")}
    assert main(["predict", *(places.get(word, word) for word in arguments)]) == 2
    err = capsys.readouterr().err
    assert message in err
    assert len(err.splitlines()) == 1
    assert not (mine / "maps").exists()


def test_a_file_name_that_is_no_text_keeps_its_bytes(trained: Path, photographs: Path, tmp_path: Path) -> None:
    folder = tmp_path / "old disk"
    folder.mkdir()
    name = os.fsdecode(b"caf\xe9.jpg")  # latin-1
    (folder / name).write_bytes(next((photographs / "val").rglob("*.jpg")).read_bytes())
    out = tmp_path / "p.csv"
    assert main(["predict", str(trained), str(folder), "--out", str(out), "--maps", str(tmp_path / "maps")]) == 0
    assert b"\ncaf\xe9.jpg," in out.read_bytes()


def test_maps_of_a_head_that_may_be_untrained_are_said_to_be(
    trained: Path, mine: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    config = trained / "config.json"
    config.write_text(config.read_text().replace('"token_score_weight": 0.5', '"token_score_weight": 0.0'))
    command = ["predict", str(trained), str(mine / "two.jpg"), "--out", str(tmp_path / "p.csv")]
    assert main(command) == 0
    assert "untrained" not in capfd.readouterr().err
    assert main([*command, "--maps", str(tmp_path / "maps")]) == 0
    assert "untrained" in capfd.readouterr().err
