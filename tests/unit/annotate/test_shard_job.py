"""The shard job around the annotator: threads, unreadable photographs, signals, limits, what it says of itself."""

from __future__ import annotations

import csv
import dataclasses
import itertools
import json
import logging
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import torch
from PIL import Image

from tests.conftest import machine_settings, write_manifests
from tests.unit.annotate.test_annotate import LITE0, SPEC, annotate, command, make_manifest, write_machine
from tokenlabel.annotate import shard_job
from tokenlabel.annotate.dense import build_annotator
from tokenlabel.annotate.labeling import MapBatch
from tokenlabel.annotate.pipeline import BatchReader
from tokenlabel.annotate.progress import Progress
from tokenlabel.annotate.unreadable import Unreadable, UnreadableList
from tokenlabel.core.errors import DataError
from tokenlabel.core.files import read_json, write_json
from tokenlabel.data.images import UnreadableImageError
from tokenlabel.data.manifest import Manifest
from tokenlabel.data.readers import ByteSource
from tokenlabel.labels import LabelStore
from tokenlabel.labels.shards import read_part

STEM = "train-00000-of-00001"


@pytest.fixture
def workplace(photographs: Path, tmp_path: Path) -> Path:
    root = tmp_path / "data"
    for split in ("train", "val"):
        for folder in sorted((photographs / split).iterdir())[:3]:
            shutil.copytree(folder, root / split / folder.name)
    write_machine(tmp_path)
    write_json(tmp_path / "spec.json", SPEC)
    make_manifest(tmp_path)
    return tmp_path


def spoil(place: Path) -> dict[str, str]:
    """Every kind of unreadable photograph; path relative to the split -> part of its reason."""
    folder = sorted((place / "data" / "train").iterdir())[0]
    whole = sorted(folder.glob("*.jpg"))[0].read_bytes()
    huge = bytearray(whole)
    frame = huge.index(b"\xff\xc0")
    huge[frame + 5 : frame + 9] = (65000).to_bytes(2, "big") * 2
    files = {
        "empty.jpg": (b"", "cannot identify"),
        "truncated.jpg": (whole[: len(whole) // 2], "truncated"),
        "page.jpg": (b"<!DOCTYPE html><html>404</html>", "cannot identify"),
        "bomb.jpg": (bytes(huge), "decompression bomb"),
        "noise.png": (np.random.default_rng(0).bytes(4000), "cannot identify"),
    }
    for name, (content, _) in files.items():
        (folder / name).write_bytes(content)
    (folder / "folder.jpg").mkdir()
    (folder / "dangling.jpg").symlink_to("gone.jpg")
    Image.new("RGB", (1, 1), (9, 9, 9)).save(folder / "one_pixel.png")  # these two are readable
    Image.new("RGB", (30000, 3), (9, 200, 9)).save(folder / "wide.jpg")
    (folder / "wrong_extension.png").write_bytes(whole)
    reasons = {name: reason for name, (_, reason) in files.items()} | {
        "folder.jpg": "a folder",
        "dangling.jpg": "dangling",
    }
    return {f"{folder.name}/{name}": reason for name, reason in reasons.items()}


def test_every_kind_of_unreadable_photograph_is_recorded_and_listed(workplace: Path) -> None:
    expected = spoil(workplace)
    make_manifest(workplace)
    finished = annotate(workplace)
    assert finished.returncode == 0, finished.stderr
    store = LabelStore(workplace / "labels" / "lite0-00000000", "train")
    for path, reason in expected.items():
        label = store[store.id_for(path)]
        assert label.status == 1
        assert reason in label.reason
    assert int((store.status_of(store.ids) == 1).sum()) == len(expected)
    with open(workplace / "labels" / "lite0-00000000" / "unreadable.csv", newline="") as file:
        table = list(csv.DictReader(file))
    assert {line["path"]: line["reason"] for line in table} == {
        path: store[store.id_for(path)].reason for path in expected
    }
    assert {line["shard"] for line in table} == {"0"}
    marker = read_json(workplace / "labels" / "lite0-00000000" / f"{STEM}.done")
    assert marker["unreadable"] == len(expected)


def test_a_marker_that_snakemake_removed_comes_back(workplace: Path) -> None:
    assert annotate(workplace).returncode == 0
    folder = workplace / "labels" / "lite0-00000000"
    done, shard = folder / f"{STEM}.done", folder / f"{STEM}.h5"
    said, made = done.read_bytes(), shard.stat().st_mtime_ns
    done.unlink()
    assert annotate(workplace).returncode == 0
    assert (done.read_bytes(), shard.stat().st_mtime_ns) == (said, made)
    done.unlink()
    spoiled = bytearray(shard.read_bytes())
    spoiled[len(spoiled) // 2] ^= 1
    shard.write_bytes(spoiled)  # not the shard that the copy speaks of
    assert annotate(workplace).returncode == 0
    assert shard.read_bytes() != spoiled
    assert read_json(done)["images"] == read_json(folder / f"{STEM}.done.kept")["images"]


def test_too_many_unreadable_photographs_stop_the_job_in_one_line(workplace: Path) -> None:
    folder = sorted((workplace / "data" / "train").iterdir())[1]
    for number in range(12):
        (folder / f"broken{number}.jpg").write_bytes(b"")
    make_manifest(workplace)
    finished = annotate(workplace)  # max_unreadable_fraction 0.5: more than 15 of 30 would stop
    assert finished.returncode == 0, finished.stderr
    machine = read_json(workplace / "machine.json")
    machine["dataset"]["max_unreadable_fraction"] = 0.1
    write_json(workplace / "machine.json", machine)
    refused = annotate(workplace, "labels_strict")
    assert refused.returncode == 2
    last = refused.stderr.strip().splitlines()[-1]
    assert re.match(r"error: .*(9|1[0-2]) of 30 photographs cannot be read, more than the 8 that", last)
    assert "broken" in last
    assert "Check the disk" in last


def test_the_limit_counts_earlier_parts_and_follows_the_fraction() -> None:
    settings = {"on_unreadable": "record", "max_unreadable_fraction": 0.01}
    unreadable = UnreadableList(settings, "shard", 2000)
    unreadable.found += [Unreadable(f"{n}.jpg", "empty") for n in range(19)]
    assert unreadable.add(["a", "b"], ["", "empty"]) == 1
    with pytest.raises(DataError, match="21 of 2,000 photographs cannot be read, more than the 20"):
        unreadable.add(["c"], ["empty"])


@pytest.mark.parametrize("splits", [("train",), ("val", "train")], ids=["one split", "beside another split"])
def test_tables_of_shards_that_finish_one_after_another_are_one(tmp_path: Path, splits: tuple[str, ...]) -> None:
    settings = {"on_unreadable": "record", "max_unreadable_fraction": 1.0}
    for split, shard in itertools.product(splits, (1, 0, 2)):
        unreadable = UnreadableList(settings, "shard", 50)
        unreadable.add([f"{split} {shard}.jpg"], [f"reason, {shard}"])
        done = tmp_path / f"{split}-{shard:05d}-of-00003.done"
        unreadable.write_table(
            tmp_path / f"{split}.csv", shard, done,
            lambda done=done, unreadable=unreadable: write_json(  # type: ignore[misc]
                done, {"unreadable_photographs": [vars(u) for u in unreadable.found]}
            ),
        )  # fmt: skip
    for split in splits:
        lines = (tmp_path / f"{split}.csv").read_text().splitlines()
        assert lines == ["path,shard,reason", *(f'{split} {n}.jpg,{n},"reason, {n}"' for n in range(3))]


def contents(shard: Path) -> dict[str, Any]:
    with h5py.File(shard) as file:
        return {name: file[name][:] for name in ("sample_id", "records", "status", "reason")}


def test_threads_batches_and_resuming_change_no_bit(workplace: Path) -> None:
    """Unreadable photographs among them; killed twice; 0 and 3 threads."""
    spoil(workplace)
    make_manifest(workplace)
    write_machine(workplace, part_seconds=1e-6, annotate_batch=4, workers=0)
    assert annotate(workplace, "undisturbed").returncode == 0
    write_machine(workplace, part_seconds=1e-6, annotate_batch=4, workers=3)
    place = workplace / "labels" / "lite0-00000000"
    for parts in (2, 4):
        process = subprocess.Popen(command(workplace), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        deadline = time.monotonic() + 120
        while len(list(place.glob("*.parts/part-*.h5"))) < parts and process.poll() is None:
            assert time.monotonic() < deadline
            time.sleep(0.005)
        process.send_signal(signal.SIGKILL)
        process.wait()
    assert annotate(workplace).returncode == 0
    expected = contents(workplace / "undisturbed" / "lite0-00000000" / f"{STEM}.h5")
    for name, values in contents(place / f"{STEM}.h5").items():
        np.testing.assert_array_equal(values, expected[name])
    markers = [read_json(folder / f"{STEM}.done") for folder in (place, workplace / "undisturbed" / "lite0-00000000")]
    assert [len(marker["unreadable_photographs"]) for marker in markers] == [7, 7]
    assert markers[0]["job"]["resumed"] > 0


def test_photographs_that_a_disk_gives_again_are_labeled_by_the_rerun(
    workplace: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A disk that fails from the third photograph on stops the job; the parts of that job must not keep the holes."""
    write_machine(workplace, part_seconds=1e-6, annotate_batch=2, workers=0)
    real, calls = ByteSource.read, []

    def failing(self: ByteSource, *args: Any) -> bytes:
        calls.append(args)
        if len(calls) > 2:
            raise UnreadableImageError("the file cannot be read: Input/output error")
        return real(self, *args)

    monkeypatch.setattr("tokenlabel.annotate.unreadable.ALWAYS_ALLOWED", 4)
    machine = read_json(workplace / "machine.json")
    machine["dataset"]["max_unreadable_fraction"] = 0.0
    write_json(workplace / "machine.json", machine)
    place = workplace / "labels" / "lite0-00000000"
    with monkeypatch.context() as broken:
        broken.setattr(ByteSource, "read", failing)
        with pytest.raises(DataError, match="more than the 4"):
            run_in_process(workplace, broken, shard_job.label_batch)
    assert len(list(place.glob("*.parts/part-*.h5"))) == 3  # two photographs, and two with two holes each
    marker = run_in_process(workplace, monkeypatch, shard_job.label_batch)
    assert (marker["images"], marker["unreadable"], marker["job"]["resumed"]) == (18, 0, 2)


def test_a_part_closes_in_time_while_a_long_pass_lets_nothing_through(
    workplace: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_machine(workplace, part_seconds=0.2, annotate_batch=2)
    real, parts = shard_job.label_batch, []

    def slow(*args: Any) -> MapBatch:
        if len(parts) == 1:
            deadline = time.monotonic() + 10
            while not list((workplace / "labels").rglob("part-*.h5")) and time.monotonic() < deadline:
                time.sleep(0.02)
        parts.append(len(list((workplace / "labels").rglob("part-*.h5"))))
        return real(*args)

    run_in_process(workplace, monkeypatch, slow)
    assert parts[:2] == [0, 1]  # written during the second pass


@pytest.mark.sampled(3)
@pytest.mark.parametrize("name", ["SIGTERM", "SIGUSR1", "SIGINT"])
def test_a_signal_ends_the_job_with_its_work_on_disk(workplace: Path, name: str) -> None:
    write_machine(workplace, part_seconds=1000.0, annotate_batch=1)  # nothing would be on disk for a long time
    spec = read_json(workplace / "spec.json")
    spec["labels"]["image_px"], spec["annotator"]["grid"] = 576, [18, 18]
    write_json(workplace / "spec.json", spec)
    log = workplace / "job.log"
    process = subprocess.Popen(
        [*command(workplace), "--log", str(log)], stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True
    )
    deadline = time.monotonic() + 60
    while not log.exists() or "dense head" not in log.read_text():
        assert time.monotonic() < deadline
        assert process.poll() is None
        time.sleep(0.02)
    time.sleep(1.5)
    started = time.monotonic()
    process.send_signal(getattr(signal, name))
    _, said = process.communicate(timeout=20)
    assert time.monotonic() - started < 10
    assert process.returncode == 128 + getattr(signal, name)
    place = workplace / "labels" / "lite0-00000000"
    kept = sum(len(read_part(part).sample_id) for part in place.glob("*.parts/part-*.h5"))
    assert 1 <= kept < 18
    assert re.search(rf"error: .*stopped by {name}; {kept} of 18 photographs are labeled and kept", said)
    assert len(said.strip().splitlines()) == 1
    assert not list(place.glob("*.lease"))
    assert not (place / f"{STEM}.done").exists()


def test_a_forward_pass_that_never_returns_does_not_hold_the_job_back(tmp_path: Path) -> None:
    """The main thread sits in C code; Python's own handler would wait for it."""
    script = f"""
import hashlib, pathlib, sys
from tokenlabel.engine.stopping import stopping_by_signal
def finish(name):
    pathlib.Path({str(tmp_path / "saved")!r}).write_text(name)
    return "saved"
with stopping_by_signal(finish):
    print("ready", flush=True)
    hashlib.pbkdf2_hmac("sha256", b"x", b"y", 2**31 - 1)
"""
    process = subprocess.Popen(
        [sys.executable, "-c", script], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    started = time.monotonic()
    process.terminate()
    _, said = process.communicate(timeout=20)
    assert time.monotonic() - started < 5
    assert (process.returncode, said) == (143, "error: saved\n")
    assert (tmp_path / "saved").read_text() == "SIGTERM"


def run_in_process(workplace: Path, monkeypatch: pytest.MonkeyPatch, label: Any) -> dict[str, Any]:
    monkeypatch.setattr(shard_job, "label_batch", label)
    machine = read_json(workplace / "machine.json")
    manifest = write_manifests(workplace / "manifest", machine)["train"]
    done = workplace / "labels" / "lite0-00000000" / f"{STEM}.done"
    return shard_job.annotate_shard(read_json(workplace / "spec.json"), machine, manifest, 0, done)


def test_logits_that_are_not_finite_stop_the_job_with_the_photographs_name(
    workplace: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, seen = shard_job.label_batch, []

    def spoiled(*args: Any) -> MapBatch:
        maps = real(*args)
        seen.append(len(maps.finite))
        if len(seen) == 2:
            return dataclasses.replace(maps, finite=torch.tensor([True, False, True, True]))
        return maps

    machine = read_json(workplace / "machine.json")
    rows = write_manifests(workplace / "manifest", machine)["train"]
    with pytest.raises(DataError, match=r"logits are not finite.*machine\.precision") as caught:
        run_in_process(workplace, monkeypatch, spoiled)
    assert str(caught.value).startswith(rows.path(5))
    assert not (workplace / "labels" / "lite0-00000000" / f"{STEM}.done").exists()


def test_weights_that_are_not_finite_are_found_by_the_real_arithmetic(
    workplace: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def damaged(*args: Any) -> Any:
        annotator = build_annotator(*args)
        annotator.classifier.bias.data[3] = float("nan")
        return annotator

    monkeypatch.setattr(shard_job, "build_annotator", damaged)
    with pytest.raises(Exception, match=r"not finite|differs from its own logits by nan"):
        run_in_process(workplace, monkeypatch, shard_job.label_batch)


def small_reader(manifest: Manifest, machine: dict[str, Any], rows: np.ndarray[Any, Any], *, batch: int) -> BatchReader:
    return BatchReader(
        manifest,
        machine,
        rows,
        batch=batch,
        threads=2,
        image_px=64,
        view="squash",
        interpolation="bicubic",
        pinned=False,
    )


def test_memory_does_not_grow_with_the_shard(photographs: Path) -> None:
    machine = machine_settings(photographs, workers=2)

    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        manifest = write_manifests(Path(folder), machine)["train"]
        rows = np.tile(np.arange(len(manifest)), 5)
        reader = small_reader(manifest, machine, rows, batch=8)
        buffers = {batch.images.untyped_storage().data_ptr() for batch in reader}
    assert len(buffers) <= 5  # of 75 batches


def test_the_marker_and_the_log_say_what_the_job_did(workplace: Path) -> None:
    log = workplace / "job.log"
    finished = subprocess.run(
        [*command(workplace), "--log", str(log)], capture_output=True, text=True, timeout=300, check=False
    )
    assert finished.returncode == 0, finished.stderr
    said = [line.split("summary ", 1)[1] for line in log.read_text().splitlines() if " summary " in line]
    assert len(said) == 1
    summary = json.loads(said[0])
    marker = read_json(workplace / "labels" / "lite0-00000000" / f"{STEM}.done")
    assert summary["images"] == 18
    assert marker["job"]["compute_precision"] == "float32"
    assert marker["job"]["images_per_s"] > 0
    for name, value in marker["job"].items():
        assert summary[name] == value
    store = LabelStore(workplace / "labels" / "lite0-00000000", "train")
    assert store.attributes.libraries["compute_precision"] == "float32"


def test_a_log_has_a_line_every_half_minute_and_a_terminal_a_bar(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("tokenlabel.annotate.progress.LINE_SECONDS", 0.0)
    monkeypatch.setattr(logging.getLogger("tokenlabel"), "propagate", True)
    with caplog.at_level(logging.INFO, "tokenlabel"), Progress("train", 100, 40, 1) as progress:
        progress.add(20, 2)
    assert re.search(r"60 of 100 photographs, [\d.]+ images/s, \d+ s left, 3 unreadable", caplog.text)
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    with Progress("train", 100, 40, 1) as progress:
        progress.add(20, 2)
    drawn = capsys.readouterr().err
    assert "60/100" in drawn
    assert "unreadable=3" in drawn


@pytest.mark.campaign  # half a minute of compiling
def test_a_compiled_annotator_gives_the_same_labels(workplace: Path) -> None:
    write_machine(workplace, annotate_batch=4)
    assert annotate(workplace, "plain").returncode == 0
    write_machine(workplace, annotate_batch=4, annotate_compile=True)
    finished = annotate(workplace)
    assert finished.returncode == 0, finished.stderr
    one, other = (LabelStore(workplace / name / "lite0-00000000", "train") for name in ("plain", "labels"))
    first, second = one.get_many(one.ids), other.get_many(one.ids)
    assert (first.classes == second.classes).mean() > 0.995
    np.testing.assert_allclose(first.scores.astype(np.float32), second.scores.astype(np.float32), atol=0.03)


def test_no_thread_is_left_after_an_error(workplace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import threading

    def failing(*_: Any) -> MapBatch:
        raise DataError("the annotator failed")

    write_machine(workplace, workers=2, annotate_batch=4)
    before = threading.active_count()
    with pytest.raises(DataError, match="the annotator failed"):
        run_in_process(workplace, monkeypatch, failing)
    assert threading.active_count() == before


def test_a_decoding_error_in_a_thread_ends_the_job(workplace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_machine(workplace, workers=2, annotate_batch=4)
    victim = sorted((workplace / "data" / "train").rglob("*.jpg"))[3]
    machine = read_json(workplace / "machine.json")
    manifest = write_manifests(workplace / "manifest", machine)["train"]
    victim.write_bytes(victim.read_bytes() + b"more")
    done = workplace / "labels" / "lite0-00000000" / f"{STEM}.done"
    with pytest.raises(DataError, match=r"the file has changed.*tokenlabel refresh"):
        shard_job.annotate_shard(SPEC, machine, manifest, 0, done)


def test_the_annotators_threads_are_not_those_of_the_decoders(workplace: Path) -> None:
    torch.set_num_threads(2)
    machine = machine_settings(workplace / "data")
    manifest = write_manifests(workplace / "manifest", machine)["train"]
    reader = small_reader(manifest, machine, np.arange(8), batch=2)
    assert {torch.get_num_threads() for _ in reader} == {2}
    torch.set_num_threads(1)
    assert LITE0["grid"] == [5, 5]


def test_parts_of_other_weights_are_done_anew(workplace: Path) -> None:
    """A weights file that is replaced between an interruption and the rerun leaves no label in the shard."""
    annotator = build_annotator(LITE0, Path())
    torch.save(annotator.backbone.state_dict(), workplace / "w.pth")
    spec = read_json(workplace / "spec.json")
    spec["annotator"] |= {"weights": f"file:{workplace / 'w.pth'}", "weights_naming": "timm"}
    write_json(workplace / "spec.json", spec)
    write_machine(workplace, part_seconds=1e-6, annotate_batch=1)
    place = workplace / "labels" / "lite0-00000000"
    process = subprocess.Popen(command(workplace), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 120
    while len(list(place.glob("*.parts/part-*.h5"))) < 3:
        assert time.monotonic() < deadline
        assert process.poll() is None
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    process.wait()
    annotator.backbone.classifier.weight.data = annotator.backbone.classifier.weight.data.flip(0)
    torch.save(annotator.backbone.state_dict(), workplace / "w.pth")
    finished = annotate(workplace)
    assert finished.returncode == 0
    assert "parts of other weights or settings are done anew" in finished.stderr
    assert annotate(workplace, "fresh").returncode == 0
    one, other = (contents(folder / f"{STEM}.h5") for folder in (place, workplace / "fresh" / "lite0-00000000"))
    np.testing.assert_array_equal(one["records"], other["records"])
