"""Trials on trainings: killed, told to stop, at their deadline, with a damaged checkpoint; then continued by the same command.

A small LV-ViT learns from the labels of a workplace's photographs: accumulation, clipping, averaged weights, batch norms and
stochastic depth are on. What an undisturbed run logged and left is what every continued run must log and leave, bit for bit.
"""

from __future__ import annotations

import functools
import hashlib
import json
import multiprocessing
import os
import random
import re
import signal
import time
from pathlib import Path
from typing import Any

import torch
import yaml

from tokenlabel.core.config import load_config
from tokenlabel.core.files import read_json, write_json

from .workplace import Job, Workplace, fresh_folder, require, run_quietly

ROOT = Path(__file__).resolve().parents[1]
EPOCHS, BATCH, MICRO_BATCH = 3, 4, 2
CLOCK = ("seconds", "images_per_s", "memory_mb")  # keys of a line that depend on the machine's mood
SIGNALS = (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT)


class TrainingPlace(Workplace):
    """The photographs and labels of another workplace, and a run that learns from them."""

    def __init__(self, folder: Path, source: Workplace) -> None:
        super().__init__(folder, source.images)
        self._source = source
        config = load_config(yaml.safe_load((ROOT / "config.yaml").read_text(encoding="utf-8")))
        recipe = config.recipes["released_code"].model_dump(mode="json") | {
            "epochs": EPOCHS, "cooldown_epochs": 0, "warmup_epochs": 1, "batch_size": BATCH, "learning_rate": 1e-3,
            "learning_rate_batch": None, "ema_decay": 0.9, "clip_norm": 1.0,
        }  # fmt: skip
        spec = {
            "stage": "train", "version": 1, "dataset": {"num_classes": 1000},
            "labels": read_json(source.folder / "spec.json"),
            "model": {"architecture": "lvvit_t", "stochastic_depth": 0.1,
                "settings": {"depth": 2, "width": 48, "heads": 2, "stem_channels": 16}},
            "image_px": 64, "recipe": recipe, "start": None,
        }  # fmt: skip
        write_json(folder / "spec.json", spec)
        study = config.machine.model_dump(mode="json") | {
            "micro_batch": MICRO_BATCH, "validate_every_epochs": 2, "checkpoint_seconds": 0.1, "log_every_steps": 2,
            "tensorboard": False,
        }  # fmt: skip
        for workers in (0, 2):
            machine = study | read_json(source.folder / "machine.json") | {"workers": workers}
            write_json(folder / f"machine-{workers}.json", machine)
        self._first_step_s = 0.0

    @property
    def reference(self) -> Path:
        """Folder of an undisturbed run."""
        if self._reference is None:
            assert self._source.reference
            self._reference = self.folder / "reference"
            warm_up = self.start(self.folder / "warm_up")
            require(warm_up.wait() == 0, warm_up.said())
            began = time.monotonic()
            job = self.start(self._reference)
            while job.running and not lines_of(self._reference):
                time.sleep(0.005)
            self._first_step_s = time.monotonic() - began
            require(job.wait() == 0, job.said())
            self._duration_s = time.monotonic() - began
        return self._reference

    @functools.cached_property
    def digest(self) -> str:
        """Of what the undisturbed run logged and left."""
        return run_digest(self.reference)

    def start(
        self, labels: Path, *, stale_s: float | None = None, workers: int = 0, arguments: tuple[str, ...] = ()
    ) -> Job:
        """Starts the training job that leaves its outputs in a folder."""
        words = [
            "--spec", str(self.folder / "spec.json"), "--machine", str(self.folder / f"machine-{workers}.json"),
            "--manifest", str(self._source.folder / "manifest"), "--labels", str(self._source.reference),
            "--done", str(labels / "done.json"), *arguments,
        ]  # fmt: skip
        return Job(_train, (words,), self.folder)

    def moment_s(self, rng: random.Random) -> float:
        """Seconds after its start at which something happens to a job: mostly in its steps, which follow the imports."""
        assert self.reference
        return rng.uniform(0.9 * self._first_step_s, self._duration_s)

    def check_nothing_false(self, labels: Path) -> str:
        """After a fault: a marker must be true. Returns how far the run is, for the record."""
        if (labels / "done.json").exists():
            require(run_digest(labels) == self.digest, "finished, and differs from the undisturbed run")
            return "finished"
        newest = max(labels.glob("checkpoint-*.pt"), default=None)
        if newest is None:
            return "no checkpoint"
        progress = torch.load(newest, weights_only=True)["progress"]
        lines = lines_of(labels)
        said = f"checkpoint at epoch {progress['epoch']}, step {progress['step']}"
        return f"{said}; logged {position(lines[-1])}" if lines else said

    def check_result(self, labels: Path) -> str:
        """At the end: the undisturbed run's files, lines and weights."""
        left, expected = (
            {path.name for path in folder.iterdir()} - {"resumes.jsonl"} for folder in (labels, self.reference)
        )
        require(left == expected, f"left over {sorted(left - expected)}, missing {sorted(expected - left)}")
        for found, wanted in zip(timeless(lines_of(labels)), timeless(lines_of(self.reference)), strict=True):
            require(found == wanted, f"logged {found}, the undisturbed run {wanted}")
        require(run_digest(labels) == self.digest, "the weights are not those of the undisturbed run")
        return self.digest

    def finish(self, labels: Path, workers: int = 0) -> str:
        """Runs the same command to its end; returns the digest."""
        again = self.start(labels, workers=workers)
        require(again.wait() == 0, f"the rerun failed: {again.said()[-300:]}")
        return self.check_result(labels)


def kill_training(place: Workplace, seed: int, scratch: Path) -> dict[str, Any]:
    """kill -9 at random moments, once or twice in a run; every fourth run has loader processes."""
    run, rng, workers = _begin(place, seed, scratch)
    moments = [place.moment_s(rng) for _ in range(1 + seed % 2)]
    found, inside = [], 0
    for moment_s in moments:
        job = place.start(run, workers=workers)
        time.sleep(moment_s)
        job.signal(signal.SIGKILL)
        job.wait()
        found.append(place.check_nothing_false(run))
        inside += is_inside(lines_of(run))
    return {
        "did": f"killed at {' and '.join(f'{moment:.3f}' for moment in moments)} s of {place.duration_s:.3f} s, {workers} loaders",
        "found": found,
        "inside_an_epoch": inside,
        "digest": place.finish(run, workers),
    }


def stop_training(place: Workplace, seed: int, scratch: Path) -> dict[str, Any]:
    """SIGTERM, SIGUSR1 or SIGINT at a random moment: a checkpoint, one line, exit code 128 + number."""
    run, rng, workers = _begin(place, seed, scratch)
    number, moment_s = SIGNALS[seed % len(SIGNALS)], place.moment_s(rng)
    job = place.start(run, workers=workers)
    time.sleep(moment_s)
    before = steps_saved(run)
    job.signal(number)
    began = time.monotonic()
    code = job.wait()
    took_s = time.monotonic() - began
    require(took_s < 20, f"took {took_s:.1f} s to end")
    # before the job looks after signals they have their default effect
    require(code in (0, -number, 128 + number, 130), f"exit code {code}: {job.said()[-300:]}")
    if code == 128 + number and before is not None:
        _require_one_line(job, f"stopped by {number.name}")
        require(not list(run.glob("*.lease")), "the lease is left")
        saved = steps_saved(run)
        require(saved is not None and saved >= before, "nothing was saved")
    return {
        "did": f"{number.name} at {moment_s:.3f} s of {place.duration_s:.3f} s, ended in {took_s:.3f} s with code {code}",
        "found": place.check_nothing_false(run),
        "digest": place.finish(run, workers),
    }


def reach_deadline(place: Workplace, seed: int, scratch: Path) -> dict[str, Any]:
    """A deadline in the midst of the run: the job ends before it, with a checkpoint and exit code 75."""
    run, rng, workers = _begin(place, seed, scratch)
    deadline_s = 2 + place.moment_s(rng)  # the loop keeps two seconds and more in hand
    job = place.start(run, workers=workers, arguments=("--deadline", f"{deadline_s:.3f}"))
    began = time.monotonic()
    code = job.wait()
    took_s = time.monotonic() - began
    require(took_s < deadline_s + 1, f"ended {took_s - deadline_s:.1f} s after its deadline")
    require(code in (0, 75), f"exit code {code}: {job.said()[-300:]}")
    if code:
        _require_one_line(job, "stopped by the deadline")
    return {
        "did": f"deadline after {deadline_s:.3f} s, ended after {took_s:.3f} s with {code}",
        "found": place.check_nothing_false(run),
        "digest": place.finish(run, workers),
    }


def damage_checkpoint(place: Workplace, seed: int, scratch: Path) -> dict[str, Any]:
    """The newest checkpoint has a flipped bit (even seeds) or is cut off: the one before is taken, and a line says so."""
    run, rng, workers = _begin(place, seed, scratch)
    job = place.start(run, workers=workers)
    while len(kept := sorted(run.glob("checkpoint-*.pt"))) < 2 and job.running:
        time.sleep(0.005)
    time.sleep(rng.uniform(0, 0.8) * (place.duration_s - place.moment_s(random.Random(0))))
    job.signal(signal.SIGKILL)
    job.wait()
    kept = sorted(run.glob("checkpoint-*.pt"))
    if len(kept) < 2:
        return {"did": "the run had ended", "digest": place.finish(run, workers)}
    content = bytearray(kept[-1].read_bytes())
    offset = rng.randrange(len(content))
    if seed % 2:
        del content[offset:]
    else:
        content[offset] ^= 1 << rng.randrange(8)
    kept[-1].write_bytes(content)
    again = place.start(run, workers=workers)
    require(again.wait() == 0, f"the rerun failed: {again.said()[-300:]}")
    said = re.findall(rf"{kept[-1].name}: damaged.*going on from {kept[-2].name}", again.said())
    require(len(said) == 1, f"did not say so: {again.said()[-300:]}")
    return {
        "did": f"{kept[-1].name} {'cut off at' if seed % 2 else 'a bit flipped of'} byte {offset}",
        "said": said[0],
        "digest": place.check_result(run),
    }


def _begin(place: Workplace, seed: int, scratch: Path) -> tuple[Path, random.Random, int]:
    assert isinstance(place, TrainingPlace)
    assert place.reference
    return fresh_folder(scratch) / "run", random.Random(seed), 0 if seed % 4 else 2


def _require_one_line(job: Job, words: str) -> None:
    errors = [line for line in job.said().splitlines() if line.startswith("error: ")]
    require(len(errors) == 1 and words in errors[0], f"not one line: {job.said()[-600:]}")
    require("Traceback" not in job.said(), f"a traceback: {job.said()[-600:]}")


def lines_of(run: Path) -> list[dict[str, Any]]:
    """The whole lines of a run's metrics."""
    try:
        texts = (run / "metrics.jsonl").read_text(encoding="utf-8").split("\n")[:-1]
    except FileNotFoundError:
        return []
    return [json.loads(text) for text in texts]


def timeless(lines: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Lines without what depends on the clock."""
    return [{key: value for key, value in line.items() if key not in CLOCK} for line in lines]


def position(line: dict[str, Any]) -> str:
    """Where a line was logged."""
    return f"epoch {line['epoch']}" + (f", step {line['step']}" if "step" in line else "")


def is_inside(lines: list[dict[str, Any]]) -> bool:
    """Whether a run's last line is of a step, so that it was in an epoch; its last window may have been the epoch's last."""
    return bool(lines) and "step" in lines[-1]


def steps_saved(run: Path) -> int | None:
    """Number of the newest checkpoint."""
    return max((int(path.stem.split("-")[1]) for path in run.glob("checkpoint-*.pt")), default=None)


def run_digest(run: Path) -> str:
    """SHA-256 of what a run logged and of its weights."""
    digest = hashlib.sha256(json.dumps(timeless(lines_of(run)), sort_keys=True).encode())
    for name in ("model.safetensors", "model_ema.safetensors"):
        digest.update((run / name).read_bytes())
    return digest.hexdigest()[:16]


def _train(arguments: list[str], said: str) -> None:
    from tokenlabel.core.command import run_stage

    os.environ["TOKENLABEL_COMMIT"] = "campaign"  # as the workflow sets it; spares asking git
    multiprocessing.set_start_method("fork", force=True)  # of loader processes, as in a job that no server forked
    run_quietly(lambda: run_stage("train", [*arguments, "--log", f"{said}.log"]), said)
