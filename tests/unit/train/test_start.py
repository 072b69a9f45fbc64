"""Where a run's weights begin: published checkpoints, runs before it, chains of resolutions, other data sets."""

from __future__ import annotations

import argparse
import json
from collections import OrderedDict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor
from torchvision.ops import roi_align

from tests.conftest import machine_settings
from tokenlabel.core.errors import CheckpointError, ConfigError
from tokenlabel.core.files import sha256_of, write_json
from tokenlabel.core.study import Study
from tokenlabel.data.manifest import Manifest, build_manifests, save_manifests
from tokenlabel.labels import LabelStore
from tokenlabel.models import create_model, load_model
from tokenlabel.train.batches import MicroBatch
from tokenlabel.train.job import train_run
from tokenlabel.train.start import build_model
from tokenlabel.train.supervision import Supervision

from .conftest import Workplace

Spec = dict[str, Any]
PUBLISHED = "lvvit_t-published.pth.tar"


@pytest.fixture(scope="session")
def published(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A weights_root with a file as the authors' training writes them: plain and averaged weights, arguments, optimiser."""
    root = tmp_path_factory.mktemp("weights")
    torch.manual_seed(3)
    model = create_model("lvvit_t", num_classes=1000, image_px=64, depth=2, width=48, heads=2, stem_channels=16)
    state = model.state_dict()
    averaged = OrderedDict(
        (f"module.{name}", value * 0.5 if value.is_floating_point() else value) for name, value in state.items()
    )
    content = {
        "epoch": 309, "arch": "lvvit_t", "state_dict": state, "state_dict_ema": averaged, "version": 2,
        "args": argparse.Namespace(model="lvvit_t", lr=0.0016), "metric": 79.1,
    }  # fmt: skip
    torch.save(content, root / PUBLISHED)
    return root


def from_file(spec: Spec, image_px: int, **model: Any) -> Spec:
    started = {"weights": f"file:{PUBLISHED}", "weights_sha256": None, "weights_naming": "timm"} | model
    return spec | {"stage": "finetune", "image_px": image_px, "model": spec["model"] | started}


def test_a_published_checkpoint_is_fine_tuned_from_its_averaged_weights(
    spec: Spec, workplace: Workplace, published: Path, tmp_path: Path
) -> None:
    content = torch.load(published / PUBLISHED, weights_only=False)
    averaged = {name.removeprefix("module."): value for name, value in content["state_dict_ema"].items()}
    started = build_model(from_file(spec, 96), None, 0, published).state_dict()
    assert {name for name in started if not torch.equal(started[name], averaged[name])} == {"pos_embed"}  # another grid
    machine = workplace.machine | {"weights_root": str(published)}
    spec["recipe"] |= {"epochs": 1, "learning_rate": 1e-9, "min_learning_rate": 0.0, "ema_decay": None}
    train_run(
        from_file(spec, 96), machine, manifests=workplace.manifests, labels_folder=workplace.labels, start_folder=None, seed=0,
        done=tmp_path / "done.json",
    )  # fmt: skip
    trained = load_model(tmp_path).model.state_dict()
    torch.testing.assert_close(
        trained["blocks.1.mlp.fc1.weight"], averaged["blocks.1.mlp.fc1.weight"], atol=1e-6, rtol=0
    )


def interpolated(positions: Tensor, grid: int) -> Tensor:
    """Positions of a square grid behind the class token's, by torch itself; (1, 1 + tokens, width)."""
    old = int((positions.shape[1] - 1) ** 0.5)
    square = positions[:, 1:].reshape(1, old, old, -1).permute(0, 3, 1, 2)
    square = torch.nn.functional.interpolate(square, (grid, grid), mode="bicubic", align_corners=False)
    return torch.cat([positions[:, :1], square.flatten(2).transpose(1, 2)], dim=1)


def test_a_chain_of_three_resolutions(spec: Spec, workplace: Workplace, tmp_path: Path) -> None:
    """As 288 -> 448 -> 512: each starts from the weights that the one before was measured with."""
    assert spec["recipe"]["mix"] == "mixtoken"
    before: Path | None = None
    for position, image_px in enumerate((64, 96, 112)):
        folder = tmp_path / str(image_px)
        spec |= {"stage": "finetune" if before else "train", "image_px": image_px, "start": "0" * 8 if before else None}
        spec["recipe"] |= {"epochs": 1, "ema_decay": None if position else 0.9}
        started = build_model(spec, before, 0)
        assert started.grid == (image_px // 16, image_px // 16)
        if before:
            kept = load_file(before / ("model_ema.safetensors" if position == 1 else "model.safetensors"))
            torch.testing.assert_close(started.pos_embed.detach(), interpolated(kept["pos_embed"], image_px // 16))
            assert all(torch.equal(started.state_dict()[name], kept[name]) for name in kept if name != "pos_embed")
        train_run(
            spec, workplace.machine, manifests=workplace.manifests, labels_folder=workplace.labels, start_folder=before, seed=0,
            done=folder / "done.json",
        )  # fmt: skip
        lines = map(json.loads, (folder / "metrics.jsonl").read_text().splitlines())
        assert all(line["token_loss"] > 0 for line in lines)
        assert load_model(folder).config.image_px == image_px
        before = folder


@pytest.mark.parametrize("image_px", [64, 96, 112])
def test_labels_are_sampled_for_the_grid_of_the_new_resolution(spec: Spec, workplace: Workplace, image_px: int) -> None:
    """Token targets equal torchvision's roi_align of the whole map, on 4 x 4, 6 x 6 and 7 x 7 tokens."""
    grid = image_px // 16
    recipe = spec["recipe"] | {"label_smoothing": 0.0}
    ids = workplace.manifests["train"].sample_id[4:10]
    labels = [LabelStore(workplace.labels, split="train")[int(identifier)] for identifier in ids]
    scores = torch.from_numpy(np.stack([label.scores for label in labels]))
    classes = torch.from_numpy(np.stack([label.classes for label in labels]).astype(np.int32))
    corners = torch.rand(6, 2, generator=torch.Generator().manual_seed(image_px)) * 0.4
    affine = torch.zeros(6, 2, 3)
    affine[:, :, 2], affine[:, 0, 0], affine[:, 1, 1] = corners, 0.3, 0.55
    batch = MicroBatch(torch.empty(6, 3, image_px, image_px), torch.zeros(6).long(), affine, scores, classes, None, 0)
    targets = Supervision(recipe, 1000, (grid, grid), image_px, 0)._token_targets(batch)
    rows, cols = scores.shape[1:3]
    whole = torch.zeros(6, rows, cols, 1000).scatter_(3, classes.long(), scores.float())
    low, high = affine[:, :, 2], affine[:, :, 2] + affine[:, :, :2].sum(-1)
    boxes = torch.cat([torch.arange(6.0)[:, None], low * cols, high * cols], dim=1)
    aligned = roi_align(whole.permute(0, 3, 1, 2), boxes, (grid, grid), sampling_ratio=-1, aligned=True)
    expected = aligned.flatten(2).transpose(1, 2).softmax(-1)
    torch.testing.assert_close(targets.dense(), expected, atol=1e-5, rtol=1e-4)
    assert targets.inside.all()


@pytest.fixture(scope="session")
def six_classes(workplace: Workplace, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Manifest]:
    """The same photographs as a data set of its own, classes by folder name."""
    folder = tmp_path_factory.mktemp("six")
    spec = {"class_map": None, "num_classes": 6, "val_fraction": None, "val_seed": 0, "images": None, "shards": 1}
    manifests = build_manifests(spec, machine_settings(workplace.root / "data"))
    write_json(folder / "manifest.done", save_manifests(folder, manifests))
    return manifests


def test_another_data_set_starts_with_heads_of_its_own(
    spec: Spec, workplace: Workplace, published: Path, six_classes: dict[str, Manifest], tmp_path: Path
) -> None:
    """Fine-tuning to six classes with hard labels, from a published network of a thousand."""
    spec["dataset"], spec["labels"] = {"num_classes": 6}, None
    spec["recipe"] |= {
        "supervision": "hard", "class_target": "label", "epochs": 4, "mix": "none", "randaugment_count": 0, "ema_decay": None,
        "learning_rate": 3e-3, "erasing_probability": 0.0, "crop_scale": [0.8, 1.0],
    }  # fmt: skip
    spec = from_file(spec, 64, weights_sha256=sha256_of(published / PUBLISHED))
    machine = workplace.machine | {"weights_root": str(published)}
    started = build_model(spec, None, 0, published)
    assert (started.head.weight.shape, started.aux_head.weight.shape) == ((6, 48), (6, 48))
    assert torch.equal(started.head.weight, build_model(spec, None, 0, published).head.weight)  # drawn from the seed
    assert not torch.equal(started.head.weight, build_model(spec, None, 1, published).head.weight)
    train_run(
        spec, machine, manifests=six_classes, labels_folder=None, start_folder=None, seed=0, done=tmp_path / "done.json"
    )  # fmt: skip
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    losses = [line["class_loss"] for line in lines if "step" not in line]
    assert losses[-1] < losses[0]
    loaded = load_model(tmp_path)
    assert loaded.config.classes == six_classes["train"].classes
    assert loaded.model.token_score_weight == 0.0  # an untrained token head has no say


def test_a_run_of_ours_starts_another_data_sets_training(
    spec: Spec, workplace: Workplace, six_classes: dict[str, Manifest], tmp_path: Path
) -> None:
    spec["recipe"]["epochs"] = 1
    train_run(
        spec, workplace.machine, manifests=workplace.manifests, labels_folder=workplace.labels, start_folder=None, seed=0,
        done=tmp_path / "seed0" / "done.json",
    )  # fmt: skip
    spec["dataset"] = {"num_classes": 6}
    started = build_model(from_file(spec, 96, weights="folder:seed0"), None, 0, tmp_path).state_dict()
    averaged = load_file(tmp_path / "seed0" / "model_ema.safetensors")
    assert torch.equal(started["blocks.0.attn.qkv.weight"], averaged["blocks.0.attn.qkv.weight"])
    assert started["head.weight"].shape == (6, 48)


@pytest.mark.parametrize(
    ("model", "message"),
    [
        ({"weights": "file:none.pth.tar"}, r"none.pth.tar: no such weights file.*start of a row"),
        ({"weights_sha256": "0" * 64}, "the configuration states 0000000000000000"),
        ({"settings": {"depth": 3, "width": 48, "heads": 2, "stem_channels": 16}}, "of another model"),
        ({"settings": {"depth": 2, "width": 96, "heads": 2, "stem_channels": 16}}, "of another model"),
    ],
)
def test_weights_that_do_not_fit(spec: Spec, published: Path, model: Spec, message: str) -> None:
    with pytest.raises(CheckpointError, match=message):
        build_model(from_file(spec, 64, **model), None, 0, published)


def row(raw: Spec, **settings: Any) -> Any:
    raw["experiments"] = {
        "mine": {"question": "Mine?", "paper": "none", "seeds": [0], "rows": [{"name": "mine", "set": settings}]}
    }
    raw["select"]["experiments"] = ["mine"]
    raw["segmentation"]["experiments"] = {}  # whose backbones are runs, too
    study = Study.plan(raw)
    return study.runs, study.tables["mine"].rows[0].run


def test_a_row_that_starts_from_a_file_plans_fine_tunings_only(raw_config: Spec) -> None:
    runs, last = row(
        raw_config,
        start="file:lvvit_l-150M-288.pth.tar",
        start_sha256="a" * 64,
        model="lvvit_l",
        finetune_px=[448, 512],
    )
    assert [run.spec["stage"] for run in runs.values()] == ["finetune", "finetune"]
    first = last.start
    assert first.start is None
    assert first.spec["start"] is None
    assert (first.spec["model"]["weights"], first.spec["model"]["weights_sha256"]) == (
        "file:lvvit_l-150M-288.pth.tar",
        "a" * 64,
    )
    assert first.spec["recipe"]["learning_rate"] == 5e-6
    assert first.name.startswith("lvvit_l-token-nfnet_f6-to448px-")
    assert last.name.startswith("lvvit_l-token-nfnet_f6-448to512px-")
    assert last.spec["start"] == first.name.rsplit("-", 1)[1]


def test_a_file_for_another_data_set_needs_no_annotator(raw_config: Spec) -> None:
    raw_config["dataset"].update(name="flowers", num_classes=102, class_map=None)
    raw_config["select"]["annotators"] = []
    runs, last = row(raw_config, **{"start": "file:a.pth.tar", "finetune_px": [224], "finetune.supervision": "hard"})
    assert list(runs) == [last.name]
    assert last.labels is None
    assert last.spec["dataset"]["num_classes"] == 102
    assert last.name.startswith("lvvit_s-hard-to224px-")
    with pytest.raises(ConfigError, match="'nfnet_f6' knows 1000 classes, data set 'flowers' has 102"):
        row(raw_config, start="file:a.pth.tar", finetune_px=[224])


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"start": "file:a.pth"}, ["mine.rows.mine.set.start", "finetune_px is []", "finetune_px: [224]"]),
        ({"start": "a.pth", "finetune_px": [384]}, ["mine.rows.mine.set.start", "'a.pth'", "file:NAME"]),
        ({"start": 3, "finetune_px": [384]}, ["mine.rows.mine.set.start", "3", "file:NAME"]),
        ({"start": "hub", "start_sha256": "x", "finetune_px": [384]}, ["mine.rows.mine.set.start_sha256", "'x'"]),
        ({"start": "file:a.pth", "finetune_px": [192]}, ["finetune_px", "192", "224"]),
        ({"strat": "hub"}, ["'strat'", "'start'"]),
        ({"start_sha256": "a" * 64}, ["start_sha256", "start"]),
    ],
)
def test_a_mistake_about_the_start_is_one_line(raw_config: Spec, settings: Spec, expected: list[str]) -> None:
    with pytest.raises(ConfigError) as caught:
        row(raw_config, **settings)
    assert "\n" not in str(caught.value)
    for part in expected:
        assert part in str(caught.value)
