"""`tokenlabel visualise` with a segmenter: its classes where they are in the photograph, beside a classifier's."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from tokenlabel.cli import main
from tokenlabel.data.scene_pictures import class_colours
from tokenlabel.data.scenes import build_scene_manifests, save_scene_manifests
from tokenlabel.eval import visualise_command
from tokenlabel.eval.scene_page import SceneView
from tokenlabel.eval.visualisation import segment_photographs
from tokenlabel.models import create_model, create_segmenter, load_segmenter, save_segmenter

from .test_visualise import LVVIT, PANEL_PX, save_run

CLASSES = ("dark", "bright")
SPEC = {
    "model": {"architecture": "lvvit_t", "settings": LVVIT},
    "recipe": {"crop_px": 32, "short_side_px": 64},
}
HEAD = {
    "kind": "fcn", "channels": 8, "convolutions": 1, "concatenate_input": False, "dropout": 0.0,
    "levels": {"blocks": [2], "scales": [1], "deepest_channels": None}, "auxiliary": None,
}  # fmt: skip


@pytest.fixture(scope="module")
def segmenter(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A seed folder of a segmenter that tells dark from bright: fitted to one photograph of halves in a few steps."""
    torch.manual_seed(0)
    model = create_segmenter(create_model("lvvit_t", 1, 32, **LVVIT), HEAD, len(CLASSES), crop_px=32)
    optimiser = torch.optim.AdamW(model.parameters(), 3e-3)
    images = torch.cat([torch.full((2, 3, 32, 32), -2.0), torch.full((2, 3, 32, 32), 2.0)])
    images[1, :, :, 16:], images[3, :, :, 16:] = 2.0, -2.0
    masks = (images[:, 0, ::16, ::16] > 0).long()  # of every token
    for _ in range(40):
        optimiser.zero_grad()
        torch.nn.functional.cross_entropy(model(images).logits, masks).backward()
        optimiser.step()
    folder = tmp_path_factory.mktemp("segmenter")
    save_segmenter(folder, model, SPEC, CLASSES, 0)
    return folder


@pytest.fixture(scope="module")
def classifier(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("classifier")
    save_run(folder, "lvvit_t", 32, **LVVIT)
    return folder


@pytest.fixture
def street(tmp_path: Path) -> Path:
    """A broad photograph, black to the left and white to the right."""
    photograph = Image.new("RGB", (192, 128))
    photograph.paste((255, 255, 255), (96, 0, 192, 128))
    photograph.save(tmp_path / "street.png")
    return tmp_path / "street.png"


def draw(capfd: pytest.CaptureFixture[str], *arguments: object) -> tuple[int, list[str]]:
    code = main(["visualise", *map(str, arguments), "--device", "cpu"])
    return code, capfd.readouterr().err.splitlines()


def test_a_photograph_is_segmented_at_its_own_places(segmenter: Path, street: Path) -> None:
    ((photograph, mask),) = segment_photographs(load_segmenter(segmenter), [street], device=torch.device("cpu"))
    assert photograph.size == (96, 64)  # the shorter side that it was trained for
    assert mask.shape == (64, 96)
    assert (mask[:, :32] == 0).mean() > 0.95
    assert (mask[:, -32:] == 1).mean() > 0.95


@pytest.mark.parametrize("first", ["segmenter", "classifier"])
def test_both_stand_side_by_side_whichever_comes_first(
    first: str,
    segmenter: Path,
    classifier: Path,
    street: Path,
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    drawn: list[SceneView] = []
    if first == "classifier":  # the page itself is drawn once, for it takes seconds
        monkeypatch.setattr("tokenlabel.eval.scene_page.draw_scene_page", lambda views, *_, **__: drawn.extend(views))
    out = tmp_path / "page.png"
    beside = ("--tokens", classifier) if first == "segmenter" else ("--segmenter", segmenter)
    start = segmenter if first == "segmenter" else classifier
    code, lines = draw(capfd, start, street, *beside, "--out", out, "--classes", 1)
    assert code == 0, lines
    assert "1 photographs" in lines[-1]
    if first == "classifier":
        (view,) = drawn
        assert view.prediction is not None
        assert view.relevance is not None
        assert view.mask is not None
        assert view.photograph.size == (96, 64)
        assert len(view.classes) == 1
        return
    with Image.open(out) as page:
        pixels = np.asarray(page.convert("RGB")).astype(int)
    assert pixels.shape[1] == pytest.approx(4 * PANEL_PX, rel=0.08)  # photograph, tokens, segmentation, relevance
    for colour in class_colours(2).astype(int):
        assert (np.abs(pixels - colour).sum(-1) < 6).any()  # in the legend


def test_a_segmenter_alone_is_drawn(
    segmenter: Path, street: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn: list[SceneView] = []
    monkeypatch.setattr("tokenlabel.eval.scene_page.draw_scene_page", lambda views, *_, **__: drawn.extend(views))
    code, lines = draw(capfd, segmenter, street, "--out", tmp_path / "page.png")
    assert code == 0, lines
    assert [(view.title, view.prediction, len(view.classes)) for view in drawn] == [("street.png", None, 0)]


def test_a_studys_photographs_are_those_of_its_manifest(
    segmenter: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for split in ("train", "val"):
        for kind in ("images", "masks"):
            (tmp_path / kind / split).mkdir(parents=True)
            for name in "abcd":
                picture = Image.new("RGB" if kind == "images" else "L", (48, 32))
                picture.save(tmp_path / kind / split / f"{name}.png")
    places = {split: {"images": f"images/{split}", "masks": f"masks/{split}"} for split in ("train", "val")}
    scenes = {**places, "classes": None, "on_unreadable": "record", "max_unreadable_fraction": 0.5}
    spec = {"num_classes": 2, "first_id": 0, "ignore_id": None, "classes": None, "images": None}
    machine = {"segmentation_root": str(tmp_path), "scenes": scenes, "threads": 1}
    (tmp_path / "images" / "val" / "d.png").write_bytes(b"damaged")  # recorded, so it is not among those to draw
    folder = tmp_path / "scenes"
    folder.mkdir()
    (folder / "manifest.done").write_text(
        json.dumps(save_scene_manifests(folder, build_scene_manifests(spec, machine)))
    )
    (tmp_path / "machine.json").write_text(json.dumps(machine))
    drawn: list[SceneView] = []
    monkeypatch.setattr("tokenlabel.eval.scene_page.draw_scene_page", lambda views, *_, **__: drawn.extend(views))
    machine_file = tmp_path / "machine.json"
    code, lines = draw(
        capfd, segmenter, folder, "--machine", machine_file, "--count", 9, "--out", tmp_path / "page.png"
    )
    assert code == 0, lines
    assert [view.title for view in drawn] == ["a.png", "b.png", "c.png"]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["{segmenter}", "--tokens", "{segmenter}"], "it is a segmenter's"),
        (["{classifier}", "--segmenter", "{classifier}"], "of a classifier"),
        (["{classifier}", "--tokens", "{classifier}"], "--tokens {classifier}: goes beside a segmenter's checkpoint"),
        (
            ["{segmenter}", "--segmenter", "{segmenter}"],
            "--segmenter {segmenter}: goes beside a classifier's checkpoint",
        ),
        (["{segmenter}", "--tokens", "{here}/none"], "none"),
        (["{segmenter}", "{here}/broken.jpg"], "broken.jpg: cannot be decoded"),
    ],
    ids=["segmenter as classifier", "classifier as segmenter", "tokens", "segmenter", "missing", "photograph"],
)
def test_mistakes_are_one_line(
    segmenter: Path,
    classifier: Path,
    street: Path,
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
    arguments: list[str],
    said: str,
) -> None:
    (tmp_path / "broken.jpg").write_bytes(b"not a photograph")
    places = {"segmenter": segmenter, "classifier": classifier, "here": tmp_path}
    code, lines = draw(capfd, *(word.format(**places) for word in arguments), street, "--out", tmp_path / "page.png")
    assert code == 2
    errors = [line for line in lines if line.startswith("error: ")]
    assert errors == lines[-1:]
    assert said.format(**places) in errors[0]
    assert not (tmp_path / "page.png").exists()


def test_a_damaged_description_is_the_readers_to_refuse(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{")
    assert not visualise_command._is_segmenter(tmp_path)
