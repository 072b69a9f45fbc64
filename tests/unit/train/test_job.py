"""A whole run on real photographs: it learns, it resumes to the same numbers, it says what it could not read."""

from __future__ import annotations

import json
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
from tokenlabel.core.command import run_stage
from tokenlabel.core.errors import CheckpointError, ConfigError, LabelError, OutputError
from tokenlabel.core.files import read_json, write_json
from tokenlabel.engine.failures import TrainingError
from tokenlabel.engine.reporting import TIMES, MetricsFile
from tokenlabel.engine.stopping import Stop, StoppedError
from tokenlabel.eval.evaluation import evaluate_run
from tokenlabel.labels import SparseTargets
from tokenlabel.models import load_model, read_metadata
from tokenlabel.train import job, supervision
from tokenlabel.train.job import train_run
from tokenlabel.train.start import build_model

from .conftest import Workplace

Spec = dict[str, Any]


def train(spec: Spec, workplace: Workplace, folder: Path, **changes: Any) -> dict[str, Any]:
    options = {
        "labels_folder": workplace.labels,
        "start_folder": None,
        "seed": 0,
        "machine": workplace.machine,
        "done": folder / "done.json",
    } | changes
    return train_run(spec, manifests=workplace.manifests, **options)


def lines(folder: Path) -> list[dict[str, float]]:
    """metrics.jsonl without what depends on the clock."""
    return [{k: v for k, v in line.items() if k not in TIMES} for line in MetricsFile(folder / "metrics.jsonl").lines()]


def test_the_token_loss_falls_on_real_photographs(spec: Spec, workplace: Workplace, tmp_path: Path) -> None:
    spec["recipe"] |= {
        "epochs": 12, "ema_decay": None, "randaugment_count": 0, "erasing_probability": 0.0, "crop_scale": [0.8, 1.0],
        "mix": "none",
    }  # fmt: skip
    train(spec, workplace, tmp_path)
    losses = [line["token_loss"] for line in lines(tmp_path)]
    assert losses[0] > 6.5  # ln 1000 = 6.9: it starts knowing nothing
    assert losses[-1] < losses[0] - 0.5
    classes = [line["class_loss"] for line in lines(tmp_path)]
    assert classes[-1] < classes[0] - 0.5


def test_unreadable_photographs_are_skipped_and_counted(spec: Spec, workplace: Workplace, tmp_path: Path) -> None:
    marker = train(spec, workplace, tmp_path / "token")
    assert marker["unreadable"] == 1  # known from the shard's status
    assert marker["skipped"] == 3  # once an epoch
    assert marker["images"] == 3 * 24  # of 35 readable ones, two batches of 12 an epoch

    spec["labels"] = None
    spec["recipe"] |= {"supervision": "hard", "class_target": "label", "token_weight": 0.0}
    hard = train(spec, workplace, tmp_path / "hard", labels_folder=None)
    assert hard["unreadable"] == 0  # nobody looked before
    assert hard["skipped"] == 3  # found at every epoch
    assert hard["images"] == 3 * 36 - 3


@pytest.mark.parametrize(
    "change",
    [
        {"mix": "none"},
        {"mix": "cutmix"},
        {"mix": "mixup"},
        {"mix": "mixtoken_mixup"},
        {"mix": "cutmix_mixup", "mix_probability": 0.5},
        {"participation": 0.2},
        {"class_target": "label"},
        {"class_target": "blend"},
        {"geometry": "released"},
        {"label_mass": "exact"},
        {"supervision": "relabel", "token_weight": 0.0},
        {"erasing_mode": "const", "erasing_probability": 1.0, "clip_norm": 1.0},
    ],
    ids=lambda change: "-".join(f"{value}" for value in change.values()),
)
def test_every_supervision_and_mixing_of_the_tables_trains(
    spec: Spec, workplace: Workplace, tmp_path: Path, change: Spec
) -> None:
    spec["recipe"] |= {"epochs": 1, **change}
    train(spec, workplace, tmp_path)
    (line,) = lines(tmp_path)
    assert 1 < line["class_loss"] < 12
    assert ("token_loss" in line) == (spec["recipe"]["supervision"] == "token")
    assert line.get("unlabeled", 0) == 0


def test_photographs_without_a_token_target_are_counted(
    spec: Spec, workplace: Workplace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = supervision.sparse_targets

    def first_shows_nothing(*arguments: Any, **options: Any) -> SparseTargets:
        targets = real(*arguments, **options)
        return targets.without(torch.arange(len(targets)) == 0)

    monkeypatch.setattr(supervision, "sparse_targets", first_shows_nothing)
    spec["recipe"] |= {"epochs": 2}
    train(spec, workplace, tmp_path, machine=workplace.machine | {"micro_batch": 6})
    # every micro-batch has one: of 35 photographs two steps of 12 an epoch, in micro-batches of 6
    assert [line["unlabeled"] for line in lines(tmp_path)] == [4, 4]


def test_the_same_seed_gives_the_same_run_whatever_the_workers(
    spec: Spec, workplace: Workplace, tmp_path: Path
) -> None:
    spec["recipe"]["epochs"] = 1
    train(spec, workplace, tmp_path / "a")
    train(spec, workplace, tmp_path / "b", machine=workplace.machine | {"workers": 2})
    train(spec, workplace, tmp_path / "c", seed=1)
    assert lines(tmp_path / "a") == lines(tmp_path / "b")
    assert lines(tmp_path / "a") != lines(tmp_path / "c")
    first, second = (load_file(tmp_path / name / "model.safetensors") for name in "ab")
    assert all(torch.equal(first[name], second[name]) for name in first)


def start(spec: Spec, workplace: Workplace, place: Path, folder: Path) -> subprocess.Popen[str]:
    write_json(place / "spec.json", spec)
    write_json(place / "machine.json", workplace.machine)
    return subprocess.Popen(
        [
            warm_python(), "-m", "tokenlabel.train", "--spec", str(place / "spec.json"), "--machine",
            str(place / "machine.json"), "--manifest", str(workplace.root / "manifest"), "--labels", str(workplace.labels),
            "--done", str(folder / "done.json"),
        ],
        stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip


def test_a_stopped_run_continues_to_the_same_weights(spec: Spec, workplace: Workplace, tmp_path: Path) -> None:
    spec["recipe"]["epochs"] = 8
    train(spec, workplace, tmp_path / "whole")
    folder = tmp_path / "stopped"
    process = start(spec, workplace, tmp_path, folder)
    deadline = time.monotonic() + 120
    while len(MetricsFile(folder / "metrics.jsonl").lines()) < 2:
        assert time.monotonic() < deadline
        assert process.poll() is None
        time.sleep(0.01)
    os.kill(process.pid, signal.SIGTERM)
    _, stderr = process.communicate(timeout=60)
    assert process.returncode == 128 + signal.SIGTERM
    assert "error: stopped by SIGTERM; epoch " in stderr
    assert not (folder / "done.json").exists()
    assert list(folder.glob("checkpoint-*.pt"))
    assert not (folder / "run.lease").exists()

    train(spec, workplace, folder)
    require_equal_runs(folder, tmp_path / "whole")


def require_equal_runs(first: Path, second: Path) -> None:
    assert lines(first) == lines(second)
    for name in ("model.safetensors", "model_ema.safetensors"):
        one, other = load_file(first / name), load_file(second / name)
        assert all(torch.equal(one[key], other[key]) for key in one)
    assert not list(first.glob("checkpoint-*"))


def test_legs_leave_what_the_unbroken_run_leaves(spec: Spec, workplace: Workplace, tmp_path: Path) -> None:
    train(spec, workplace, tmp_path / "whole")
    folder = tmp_path / "legs"
    leg: dict[str, Any] = {"done": folder / "leg-01-of-02.done", "until_epoch": 2, "legs": 2}
    marker = train(spec, workplace, folder, **leg)
    assert (marker["epochs"], read_json(leg["done"])["epochs"]) == (2, 2)
    assert not (folder / "model.safetensors").exists()
    assert len(list(folder.glob("checkpoint-*.pt"))) == 2
    last = train(spec, workplace, folder, legs=2)
    assert (last["epochs"], last["legs"]) == (3, 2)
    require_equal_runs(folder, tmp_path / "whole")
    leg["done"].unlink()
    assert train(spec, workplace, folder, **leg)["epochs"] == 2  # of a finished run: nothing is trained again
    assert leg["done"].exists()
    require_equal_runs(folder, tmp_path / "whole")


class Clock:
    """Stands for the end of a job: time is up after so many steps."""

    def __init__(self, steps: int, monkeypatch: pytest.MonkeyPatch) -> None:
        self._left = steps
        monkeypatch.setattr(Stop, "requested", self.is_up)

    def is_up(self, reserve_s: float) -> bool:
        self._left -= 1
        return self._left < 0


def test_a_leg_at_its_deadline_hands_over_to_the_next(
    spec: Spec, workplace: Workplace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    train(spec, workplace, tmp_path / "whole")
    folder = tmp_path / "legs"
    leg: dict[str, Any] = {"done": folder / "leg-01-of-02.done", "until_epoch": 2, "legs": 2, "deadline_s": 3600}
    with monkeypatch.context() as patched:
        Clock(3, patched)  # of two steps an epoch, so in the second one
        marker = train(spec, workplace, folder, **leg)
    assert marker == read_json(leg["done"])
    assert "stopped by the deadline; epoch 1, step 1" in marker["stopped"]
    assert "epochs" not in marker
    train(spec, workplace, folder, legs=2)
    require_equal_runs(folder, tmp_path / "whole")


@pytest.mark.parametrize(("steps", "asked"), [(4, 1), (0, 0)], ids=["came forward", "no step"])
def test_the_last_job_of_a_run_goes_back_into_the_queue_if_it_came_forward(
    spec: Spec, workplace: Workplace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, steps: int, asked: int
) -> None:
    """A stand-in for scontrol notes what it was asked for, and refuses, as a site may."""
    noted = tmp_path / "noted"
    scontrol = tmp_path / "scontrol"
    scontrol.write_text(f'#!/bin/sh\necho "$@" >> {noted}\necho "not allowed" >&2\nexit 1\n')
    scontrol.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    monkeypatch.setenv("SLURM_JOB_ID", "77")
    Clock(steps, monkeypatch)
    with pytest.raises(StoppedError, match="stopped by the deadline") as stopped:
        train(spec, workplace, tmp_path / "run", deadline_s=3600, requeue=True)
    assert stopped.value.exit_code == 75
    assert (noted.read_text().splitlines() if asked else noted.exists()) == (["requeue 77"] if asked else False)


def test_a_job_that_was_taken_over_while_it_was_suspended_writes_nothing_more(
    spec: Spec, workplace: Workplace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    train(spec, workplace, tmp_path, until_epoch=1, done=tmp_path / "leg-01-of-03.done")
    before = {path.name: path.read_bytes() for path in tmp_path.glob("checkpoint-*")}
    real = supervision.Supervision.loss

    def wakes_up(*arguments: Any) -> Any:
        write_json(tmp_path / "run.lease", {"host": "another", "pid": 1, "job": "2", "counter": 3})
        return real(*arguments)

    monkeypatch.setattr(supervision.Supervision, "loss", wakes_up)
    with pytest.raises(OutputError, match="another job took over"):
        train(spec, workplace, tmp_path)
    assert {path.name: path.read_bytes() for path in tmp_path.glob("checkpoint-*")} == before
    assert {line["epoch"] for line in lines(tmp_path)} == {0}
    assert not (tmp_path / "done.json").exists()
    assert (tmp_path / "run.lease").exists()  # the other one's


@pytest.mark.parametrize(
    ("key", "value"),
    [("epochs", 0), ("learning_rate", 0.0), ("mix", "blender"), ("participation", "0.5")],
    ids=["epochs", "rate", "word", "number in quotes"],
)
def test_a_recipe_by_hand_that_makes_no_sense_is_one_line(
    spec: Spec, workplace: Workplace, tmp_path: Path, key: str, value: Any
) -> None:
    spec["recipe"][key] = value
    with pytest.raises(ConfigError, match=rf"^spec\.json: recipe\.{key}: {value!r} is not legal.*[^\n]*$"):
        train(spec, workplace, tmp_path)


def test_keys_by_hand_that_do_not_fit_each_other_are_one_line(spec: Spec, workplace: Workplace, tmp_path: Path) -> None:
    spec["recipe"] |= {"epochs": 3, "warmup_epochs": 3}
    with pytest.raises(ConfigError, match=r"^spec\.json: recipe: warmup_epochs 3 must be below epochs 3\. Mend it"):
        train(spec, workplace, tmp_path)


def test_a_marker_that_was_removed_or_damaged_comes_back(
    spec: Spec, workplace: Workplace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    marker = train(spec, workplace, tmp_path)
    done = tmp_path / "done.json"
    said = done.read_bytes()
    for damage in (done.unlink, lambda: done.write_bytes(b"{\xff"), lambda: done.write_text("[]")):
        damage()
        with monkeypatch.context() as patched:
            patched.setattr(job, "_train", lambda *_: pytest.fail("it is trained again"))
            assert train(spec, workplace, tmp_path) == marker
        assert done.read_bytes() == said
    done.unlink()
    weights = bytearray((tmp_path / "model.safetensors").read_bytes())
    weights[-1] ^= 1
    (tmp_path / "model.safetensors").write_bytes(weights)  # not the ones that the copy speaks of
    assert train(spec, workplace, tmp_path)["weights_sha256"] == marker["weights_sha256"]
    assert (tmp_path / "model.safetensors").read_bytes() != weights


def test_a_finished_run_is_not_trained_again(
    spec: Spec, workplace: Workplace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A second job for the run, which waited for the first one, or a requeued one, does nothing; nor does the third by hand."""
    marker = train(spec, workplace, tmp_path)
    written = {path: (path.stat().st_mtime_ns, path.read_bytes()) for path in tmp_path.iterdir()}
    with monkeypatch.context() as patched:
        patched.setattr(job, "_train", lambda *_: pytest.fail("it is trained again"))
        assert train(spec, workplace, tmp_path) == marker
    assert {path: (path.stat().st_mtime_ns, path.read_bytes()) for path in tmp_path.iterdir()} == written
    (tmp_path / "model.safetensors").unlink()  # a marker without weights does not count
    assert train(spec, workplace, tmp_path)["weights_sha256"] == marker["weights_sha256"]
    spec["recipe"]["learning_rate"] *= 2
    with pytest.raises(CheckpointError, match=r"done\.json: of another run.*--allow-changed"):
        train(spec, workplace, tmp_path)
    assert train(spec, workplace, tmp_path, allow_changed=True)["weights_sha256"] != marker["weights_sha256"]


@pytest.mark.parametrize(
    ("machine", "words", "said"),
    [
        ({"micro_batch": 0}, [], "machine.micro_batch: 0 is not legal"),
        ({}, ["--until-epoch", "0"], "--until-epoch 0: a leg trains at least one epoch"),
    ],
    ids=["micro-batch", "leg"],
)
def test_a_command_by_hand_that_trains_nothing_is_one_line(
    spec: Spec, workplace: Workplace, tmp_path: Path, capsys: pytest.CaptureFixture[str],
    machine: dict[str, Any], words: list[str], said: str,
) -> None:  # fmt: skip
    write_json(tmp_path / "spec.json", spec)
    write_json(tmp_path / "machine.json", workplace.machine | machine)
    code = run_stage(
        "train",
        [
            "--spec", str(tmp_path / "spec.json"), "--machine", str(tmp_path / "machine.json"),
            "--manifest", str(workplace.root / "manifest"), "--done", str(tmp_path / "done.json"), *words,
        ],
    )  # fmt: skip
    assert code == 2
    (line,) = [line for line in capsys.readouterr().err.splitlines() if "error: " in line]
    assert said in line
    assert not (tmp_path / "done.json").exists()


def test_a_missing_label_store_is_one_line(spec: Spec, workplace: Workplace, tmp_path: Path) -> None:
    with pytest.raises(LabelError, match="nowhere"):
        train(spec, workplace, tmp_path, labels_folder=tmp_path / "nowhere")


def test_fine_tuning_starts_from_the_averaged_weights_at_a_higher_resolution(
    spec: Spec, workplace: Workplace, tmp_path: Path
) -> None:
    train(spec, workplace, tmp_path / "first")
    averaged = load_file(tmp_path / "first" / "model_ema.safetensors")
    spec |= {"stage": "finetune", "image_px": 96, "start": "12345678"}
    model = build_model(spec, tmp_path / "first", 0)
    assert model.grid == (6, 6)
    assert model.pos_embed.shape == (1, 37, 48)
    assert torch.equal(model.head.weight, averaged["head.weight"])
    assert torch.equal(model.pos_embed[:, 0], averaged["pos_embed"][:, 0])
    marker = train(spec, workplace, tmp_path / "second", start_folder=tmp_path / "first")
    assert marker["epochs"] == 3
    with pytest.raises(CheckpointError, match="--start"):
        build_model(spec, None, 0)


def test_a_runs_weights_say_what_they_are_and_can_be_measured(spec: Spec, workplace: Workplace, tmp_path: Path) -> None:
    train(spec, workplace, tmp_path)
    loaded = load_model(tmp_path, use_ema=True)
    assert loaded.report.averaged
    assert json.loads(read_metadata(tmp_path / "model_ema.safetensors")["spec"]) == spec
    assert loaded.config.classes == workplace.manifests["train"].classes
    assert loaded.classes[0] == "tench"  # in words, where the folder is called n01440764
    assert (loaded.config.settings["depth"], loaded.config.crop) == (2, workplace.machine["validation_crop"])
    assert loaded.model.token_score_weight == 0.5
    evaluation = {"crop": 0.9, "interpolation": "bicubic", "use_ema": True}
    result = evaluate_run(tmp_path, evaluation, workplace.machine, workplace.manifests["val"]).numbers
    assert result["weights"] == "model_ema.safetensors"
    assert result["val_images"] == 12
    assert 0 <= result["top1"] <= result["top5"] <= 100
    plain = evaluate_run(tmp_path, evaluation | {"use_ema": False}, workplace.machine, workplace.manifests["val"])
    assert plain.numbers["weights"] == "model.safetensors"


def test_an_untrained_token_head_has_no_say(spec: Spec, workplace: Workplace, tmp_path: Path) -> None:
    spec["labels"] = None
    spec["recipe"] |= {"epochs": 1, "supervision": "hard", "class_target": "label", "token_weight": 0.0}
    train(spec, workplace, tmp_path, labels_folder=None)
    model = load_model(tmp_path / "model.safetensors").model
    assert model.token_score_weight == 0.0


def test_a_loss_that_is_not_finite_stops_with_a_reason(spec: Spec, workplace: Workplace, tmp_path: Path) -> None:
    spec["recipe"] |= {"learning_rate": 1e30, "epochs": 3}
    with pytest.raises(TrainingError, match=r"epoch \d, step \d: the loss is not finite.*learning_rate"):
        train(spec, workplace, tmp_path)


def test_labels_of_other_photographs_are_refused(spec: Spec, workplace: Workplace, tmp_path: Path) -> None:
    from dataclasses import replace

    other = replace(workplace.manifests["train"], shard_digests=("0" * 32,))
    with pytest.raises(LabelError, match="other photographs"):
        train_run(
            spec, workplace.machine, manifests={**workplace.manifests, "train": other}, labels_folder=workplace.labels,
            start_folder=None, seed=0, done=tmp_path / "done.json",
        )  # fmt: skip


def test_labels_of_another_annotator_are_refused(spec: Spec, workplace: Workplace, tmp_path: Path) -> None:
    spec["labels"] = json.loads(json.dumps(spec["labels"]))
    spec["labels"]["annotator"]["architecture"] = "tf_efficientnet_lite2.in1k"
    with pytest.raises(LabelError, match="another annotator"):
        train(spec, workplace, tmp_path)


def test_a_short_runs_averaged_weights_have_forgotten_the_random_start(
    spec: Spec, workplace: Workplace, tmp_path: Path
) -> None:
    """With the paper's decay of 0.99992 and no warm-up, nine steps would leave 99.9 % of the random weights."""
    spec["recipe"] |= {"ema_decay": 0.99992, "learning_rate": 1e-2}
    begun = build_model(spec, None, 0).state_dict()
    train(spec, workplace, tmp_path)
    averaged, last = load_file(tmp_path / "model_ema.safetensors"), load_file(tmp_path / "model.safetensors")
    for name in ("head.weight", "blocks.0.attn.qkv.weight"):
        moved = float((last[name] - begun[name]).norm())
        assert float((averaged[name] - begun[name]).norm()) > 0.3 * moved
        assert not torch.equal(averaged[name], last[name])


def test_another_recipe_is_refused_with_the_differences_unless_allowed(
    spec: Spec, workplace: Workplace, tmp_path: Path
) -> None:
    train(spec, workplace, tmp_path, until_epoch=1, done=tmp_path / "leg-01-of-03.done")
    spec["recipe"] |= {"weight_decay": 0.5, "mix": "none"}
    with pytest.raises(CheckpointError) as caught:
        train(spec, workplace, tmp_path)
    for part in (
        "recipe.weight_decay: 0.05 then, 0.5 now",
        "recipe.mix: 'mixtoken' then, 'none' now",
        "--allow-changed",
    ):
        assert part in str(caught.value)
    marker = train(spec, workplace, tmp_path, allow_changed=True)
    assert marker["epochs"] == 3
    assert read_json(tmp_path / "done.json")["changed"] == [
        "recipe.weight_decay: 0.05 then, 0.5 now",
        "recipe.mix: 'mixtoken' then, 'none' now",
    ]


def test_a_checkpoint_of_another_model_is_refused(spec: Spec, workplace: Workplace, tmp_path: Path) -> None:
    train(spec, workplace, tmp_path, until_epoch=1, done=tmp_path / "leg-01-of-03.done")
    spec["model"]["settings"]["width"] = 32
    with pytest.raises(
        CheckpointError, match=r"checkpoint-0+2\.pt: of another model: .* is \(.*48\) there and \(.*32\) here"
    ):
        train(spec, workplace, tmp_path, allow_changed=True)


def test_metrics_are_json_lines_with_the_learning_rate(spec: Spec, workplace: Workplace, tmp_path: Path) -> None:
    spec["recipe"] |= {"epochs": 3, "warmup_epochs": 1, "cooldown_epochs": 1, "warmup_learning_rate": 1e-6}
    train(spec, workplace, tmp_path, machine=workplace.machine | {"validate_every_epochs": 2})
    logged = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in logged if "step" in line] == [0, 1] * 4  # log_every_steps: 1
    found = [line for line in logged if "step" not in line]
    rates = [line["learning_rate"] for line in found]
    assert rates[0] == 1e-6
    assert rates[1] > rates[2] > rates[3]
    assert rates[3] == pytest.approx(1e-5)
    assert ["top1" in line for line in found] == [False, True, False, True]
    assert read_json(tmp_path / "done.json")["epochs"] == 4
