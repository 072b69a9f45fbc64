"""A whole segmentation run on generated scenes: it learns, and stops, continues and ends as every training of the engine does."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from tests.warm import warm_python
from tokenlabel.core.errors import CheckpointError, ConfigError
from tokenlabel.core.files import read_json, sha256_of, write_json
from tokenlabel.engine.reporting import TIMES, MetricsFile
from tokenlabel.engine.stopping import Stop, StoppedError
from tokenlabel.models.segmentation import load_segmenter
from tokenlabel.segment import job
from tokenlabel.segment.job import segment_run

from .conftest import Workplace

Spec = dict[str, Any]


def train(spec: Spec, workplace: Workplace, folder: Path, machine: dict[str, Any] | None = None, **changes: Any) -> Any:
    options = {"start_folder": None, "seed": 0, "done": folder / "done.json"} | changes
    return segment_run(spec, workplace.machine | (machine or {}), manifests=workplace.manifests, **options)


def lines(folder: Path) -> list[dict[str, float]]:
    """metrics.jsonl, steps too, without what depends on the clock."""
    found = MetricsFile(folder / "metrics.jsonl").all_lines()
    return [{k: v for k, v in line.items() if k not in TIMES} for line in found]


def require_equal_runs(first: Path, second: Path) -> None:
    assert lines(first) == lines(second)
    one, other = (load_file(folder / "model.safetensors") for folder in (first, second))
    assert one.keys() == other.keys()
    assert all(torch.equal(one[key], other[key]) for key in one)
    assert not list(first.glob("checkpoint-*"))


@pytest.fixture(scope="module")
def whole(workplace: Workplace, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The unbroken run, made by the first test that needs it."""
    return tmp_path_factory.mktemp("whole") / "run" / "seed0"


def unbroken(spec: Spec, workplace: Workplace, whole: Path) -> Path:
    train(spec, workplace, whole)  # does nothing where it is finished
    return whole


def test_the_miou_rises_on_generated_scenes(spec: Spec, workplace: Workplace, tmp_path: Path) -> None:
    spec["recipe"] |= {"iterations": 48, "interval_iterations": 12, "ema_decay": 0.9, "clip_norm": 1.0}
    marker = train(spec, workplace, tmp_path, {"validate_every_epochs": 1, "segment_micro_batch": 4})
    measured = [line for line in lines(tmp_path) if "miou" in line]
    assert [line["epoch"] for line in measured] == [0, 1, 2, 3]
    assert measured[-1]["miou"] > max(50, measured[0]["miou"] + 10)  # of three classes, one alone is below 34
    assert measured[-1]["pixel_accuracy"] > measured[0]["pixel_accuracy"]
    assert (measured[0]["val_images"], measured[0]["unlabeled"]) == (6, 0)
    losses = [line["pixel_loss"] for line in measured]
    assert losses[0] > losses[-1]
    assert (marker["epochs"], marker["steps_per_epoch"], marker["images"]) == (4, 12, 192)
    assert marker["weights_sha256"] == sha256_of(tmp_path / "model.safetensors")
    summary = read_json(tmp_path / "summary.json")
    assert summary["final"]["miou"] == measured[-1]["miou"]
    assert summary["best"]["miou"] >= summary["final"]["miou"]
    loaded = load_segmenter(tmp_path)
    assert (loaded.classes, loaded.averaged) == (("wall", "sky", "tree"), True)
    assert loaded.config.crop_px == 32


def test_the_rate_moves_with_every_step(spec: Spec, workplace: Workplace, tmp_path: Path) -> None:
    train(spec, workplace, tmp_path, {"log_every_steps": 1})
    rates = [line["learning_rate"] for line in lines(tmp_path) if "step" in line]
    assert rates[:2] == pytest.approx([1e-6, (1e-6 + 3e-3) / 2])
    assert rates[2:] == pytest.approx([3e-3 - step * (3e-3 - 1e-4) / 9 for step in range(10)])


class KilledError(Exception):
    """Ends a training between two of its instructions, as a kill does."""


@pytest.mark.sampled(3)
@pytest.mark.parametrize("step", [2, 5, 8])
def test_killed_and_continued_it_is_the_same_run(
    spec: Spec, workplace: Workplace, whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: int
) -> None:
    real = job.SceneLoss.loss
    machine = {"checkpoint_seconds": 1e-9}

    def killed(self: Any, model: Any, batch: Any, epoch: int, number: int) -> Any:
        if epoch * 4 + number == step and batch.index == 1:
            raise KilledError
        return real(self, model, batch, epoch, number)

    with monkeypatch.context() as patched:
        patched.setattr(job.SceneLoss, "loss", killed)
        with pytest.raises(KilledError):
            train(spec, workplace, tmp_path, machine)
    assert list(tmp_path.glob("checkpoint-*.pt"))
    assert not (tmp_path / "done.json").exists()
    train(spec, workplace, tmp_path, machine)
    require_equal_runs(tmp_path, unbroken(spec, workplace, whole))


def test_killed_in_a_validation_and_continued_it_is_the_same_run(
    spec: Spec, workplace: Workplace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No step of the interval is left, but its line tells the rate of the last one."""
    machine = {"validate_every_epochs": 2}
    train(spec, workplace, tmp_path / "whole", machine)

    def killed(*_: Any, **__: Any) -> Any:
        raise KilledError

    with monkeypatch.context() as patched:
        patched.setattr(job, "measure_scenes", killed)
        with pytest.raises(KilledError):
            train(spec, workplace, tmp_path / "killed", machine)
    train(spec, workplace, tmp_path / "killed", machine)
    require_equal_runs(tmp_path / "killed", tmp_path / "whole")


def test_legs_leave_what_the_unbroken_run_leaves(
    spec: Spec, workplace: Workplace, whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = train(spec, workplace, tmp_path, done=tmp_path / "leg-01-of-03.done", until_epoch=1, legs=3)
    assert (first["epochs"], first["legs"]) == (1, 3)
    left = [2]

    def time_is_up(self: Stop, reserve_s: float) -> bool:
        left[0] -= 1
        return left[0] < 0

    with monkeypatch.context() as patched:
        patched.setattr(Stop, "requested", time_is_up)
        second = train(
            spec, workplace, tmp_path, done=tmp_path / "leg-02-of-03.done", until_epoch=2, legs=3, deadline_s=3600
        )
    assert "stopped by the deadline; epoch 1, step 2" in second["stopped"]
    assert train(spec, workplace, tmp_path, legs=3)["legs"] == 3
    require_equal_runs(tmp_path, unbroken(spec, workplace, whole))


def test_the_deadline_ends_a_run_in_one_piece_with_75(
    spec: Spec, workplace: Workplace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Stop, "requested", lambda self, reserve_s: True)
    with pytest.raises(StoppedError, match="stopped by the deadline") as stopped:
        train(spec, workplace, tmp_path, deadline_s=1)
    assert stopped.value.exit_code == 75


def test_a_signal_saves_and_the_same_command_continues(
    spec: Spec, workplace: Workplace, whole: Path, tmp_path: Path
) -> None:
    """Through the command; the run is long enough to be stopped in."""
    spec["recipe"] |= {"iterations": 4000, "interval_iterations": 4000}
    folder = tmp_path / "run" / "seed0"
    write_json(tmp_path / "spec.json", spec)
    write_json(tmp_path / "machine.json", workplace.machine | {"log_every_steps": 1})
    process = subprocess.Popen(
        [
            warm_python(), "-m", "tokenlabel.segment", "--spec", str(tmp_path / "spec.json"), "--machine",
            str(tmp_path / "machine.json"), "--manifest", str(workplace.root / "manifest"), "--done", str(folder / "done.json"),
        ],
        stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    deadline = time.monotonic() + 120
    while len(lines(folder) if folder.exists() else []) < 3:
        assert time.monotonic() < deadline
        assert process.poll() is None
        time.sleep(0.01)
    os.kill(process.pid, signal.SIGUSR1)
    _, stderr = process.communicate(timeout=60)
    assert process.returncode == 128 + signal.SIGUSR1
    assert "error: stopped by SIGUSR1; epoch 0, step " in stderr
    assert list(folder.glob("checkpoint-*.pt"))
    assert not (folder / "run.lease").exists()
    done = int(max(line["step"] for line in lines(folder))) + 1
    whole = tmp_path / "whole"
    spec["recipe"] |= {"iterations": 4000}
    left = [done + 2]

    def time_is_up(self: Stop, reserve_s: float) -> bool:
        left[0] -= 1
        return left[0] < 0

    with pytest.MonkeyPatch.context() as patched:  # the unbroken one, as far as two steps further
        patched.setattr(Stop, "requested", time_is_up)
        with pytest.raises(StoppedError):
            train(spec, workplace, whole, {"log_every_steps": 1}, deadline_s=3600)
        left[0] = 2
        with pytest.raises(StoppedError):
            train(spec, workplace, folder, {"log_every_steps": 1}, deadline_s=3600)
    assert lines(folder) == lines(whole)
    assert len(lines(folder)) == done + 2


def test_a_finished_run_is_not_trained_again(
    spec: Spec, workplace: Workplace, whole: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = unbroken(spec, workplace, whole)
    marker = read_json(folder / "done.json")
    with monkeypatch.context() as patched:
        patched.setattr(job, "_train", lambda *_: pytest.fail("it is trained again"))
        assert train(spec, workplace, folder) == marker
    spec["recipe"]["learning_rate"] *= 2
    with pytest.raises(CheckpointError, match=r"done\.json: of another run"):
        train(spec, workplace, folder)


def without_norms(module: torch.nn.Module) -> None:
    """Makes what a photograph gives independent of those beside it, in place."""
    for name, child in module.named_children():
        if isinstance(child, torch.nn.BatchNorm2d):
            setattr(module, name, torch.nn.Identity())
        without_norms(child)


def test_gradients_add_up_to_the_batch(
    spec: Spec, workplace: Workplace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Norms, stochastic depth and dropout look at a micro-batch; without them its size is nothing but rounding."""
    real = job.build_segmenter
    spec["model"]["stochastic_depth"] = spec["head"]["dropout"] = spec["head"]["auxiliary"]["dropout"] = 0.0
    spec["recipe"]["iterations"] = spec["recipe"]["interval_iterations"] = 4

    def build(*arguments: Any) -> Any:
        model = real(*arguments)
        without_norms(model)
        return model

    monkeypatch.setattr(job, "build_segmenter", build)
    monkeypatch.setattr(job, "_save_results", lambda *_: "")
    found = []
    for micro_batch in (4, 2, 1, 3):
        folder = tmp_path / str(micro_batch)
        train(spec, workplace, folder, {"segment_micro_batch": micro_batch, "log_every_steps": 1})
        found.append(lines(folder))
    for others in found[1:]:
        for line, expected in zip(others, found[0], strict=True):
            assert line == pytest.approx(expected, rel=2e-4)


@pytest.mark.parametrize("micro_batch", [1, 4])
def test_upernet_trains_with_recomputed_blocks_and_single_photographs(
    spec: Spec, workplace: Workplace, tmp_path: Path, micro_batch: int
) -> None:
    """Pooling to one cell leaves one value of a single photograph, of which there is no variance."""
    spec["head"] = {
        "kind": "upernet", "channels": 16, "pool_sizes": [1, 2], "dropout": 0.1,
        "levels": {"blocks": "even", "scales": [2, 1], "deepest_channels": None},
        "auxiliary": {"level": 0, "channels": 16, "convolutions": 1, "dropout": 0.1},
    }  # fmt: skip
    spec["recipe"] |= {"iterations": 6, "interval_iterations": 6}
    machine = {"segment_micro_batch": micro_batch, "grad_checkpointing": True, "channels_last": True}
    marker = train(spec, workplace, tmp_path, machine | {"validate_every_epochs": 1})
    assert (marker["images"], marker["micro_batch"]) == (24, micro_batch)
    assert lines(tmp_path)[-1]["miou"] > 0
    assert load_segmenter(tmp_path).config.head.kind == "upernet"


def test_crops_of_one_token_train_in_single_photographs(spec: Spec, workplace: Workplace, tmp_path: Path) -> None:
    spec["recipe"] |= {"crop_px": 16, "batch_size": 3, "iterations": 4, "interval_iterations": 4}
    assert train(spec, workplace, tmp_path)["images"] == 12  # micro-batches of two and of one


@pytest.mark.parametrize(
    ("key", "value", "said"),
    [
        ("iterations", 0, "recipe.iterations: 0 is not legal"),
        ("interval_iterations", 5, "must be a multiple of interval_iterations 5"),
        ("learning_rate", 1e-5, "min_learning_rate 0.0001 is above learning_rate 1e-05"),
    ],
    ids=["iterations", "interval", "rate"],
)
def test_a_recipe_by_hand_that_makes_no_sense_is_one_line(
    spec: Spec, workplace: Workplace, tmp_path: Path, key: str, value: Any, said: str
) -> None:
    spec["recipe"][key] = value
    with pytest.raises(ConfigError, match=r"^spec\.json: [^\n]*$") as raised:
        train(spec, workplace, tmp_path)
    assert said in str(raised.value)


def test_a_manifest_of_other_classes_is_one_line(spec: Spec, workplace: Workplace, tmp_path: Path) -> None:
    spec["dataset"]["num_classes"] = 5
    with pytest.raises(ConfigError, match=r"dataset\.num_classes 5, the manifest has 3 classes"):
        train(spec, workplace, tmp_path)


def test_scenes_that_cannot_be_decoded_are_skipped_and_counted(
    spec: Spec, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    from .conftest import make_workplace

    place = make_workplace(tmp_path)
    victim = sorted((tmp_path / "data" / "images" / "training").iterdir())[3]
    victim.write_bytes(b"x" * victim.stat().st_size)
    marker = train(spec, place, tmp_path / "run")
    assert marker["images"] + marker["skipped"] == 48
    assert marker["skipped"] == 4  # four passes over twelve scenes
    assert "scene_003.png: cannot be decoded" in caplog.text
