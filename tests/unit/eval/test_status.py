"""The status of a study: every state by its traces, stale tables and shards, what lies unused, half-written trees, two runs."""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from tokenlabel.cli import main
from tokenlabel.core.command import run_command
from tokenlabel.core.errors import DataError, TokenLabelError
from tokenlabel.core.files import Lease, write_json, write_text
from tokenlabel.core.log import in_time, logger, set_up_logging
from tokenlabel.core.planned import Run
from tokenlabel.core.study import Study
from tokenlabel.eval.job_states import LOOK_S, STATES, look_at_leases, read_log_end, training_progress
from tokenlabel.eval.run_difference import compare_runs
from tokenlabel.eval.status import JobStatus, Status, gather
from tokenlabel.eval.status_text import in_bytes, status_lines
from tokenlabel.eval.tables import as_csv, collect_rows

Raw = dict[str, Any]


class Workplace:
    """A study of three trainings from one annotator's two shards, and the traces that its jobs would leave."""

    def __init__(self, raw: Raw, base: Path) -> None:
        raw["labels"]["shards"] = 2
        raw["select"] = {"annotators": ["nfnet_f6"], "experiments": ["ablation_residual", "ablation_geometry"]}
        raw["experiments"]["ablation_geometry"]["seeds"] = [0, 1]
        self.raw, self.base = raw, base
        self.study = Study.plan(raw)
        self.residual = [row.run for row in self.study.tables["ablation_residual"].rows]
        self.exact, self.released = (row.run for row in self.study.tables["ablation_geometry"].rows)
        (self.labels,) = self.study.used_labels
        write_json(base / "results" / "study.json", raw)

    def gather(self, look_s: float = 0.0) -> Status:
        return gather(self.base, self.study, "results/study.json", look_s)

    def manifest(self, digests: tuple[str, str] = ("a", "b")) -> None:
        splits = {"train": {"shard_digests": list(digests)}, "val": {"shard_digests": list(digests)}}
        write_json(self.base / self.study.data.marker, {"splits": splits})

    def shards(self, *digests: str) -> None:
        for marker, digest in zip(self.labels.markers, digests, strict=False):
            write_json(self.base / marker, {"manifest_digest": digest})

    def done(self, run: Run | Any, seed: int = 0) -> None:
        write_json(self.base / run.done(seed), marker_of(run, seed))

    def evaluated(self, run: Run | Any, seed: int = 0, top1: float = 80.0) -> None:
        write_json(self.base / run.result(seed), evaluation_at(run.result(seed), top1))

    def log(self, run: Run | Any, *lines: str, seed: int = 0) -> None:
        text = "".join(f"2026-01-02 03:04:05,678 {line}\n" for line in lines)
        write_text(self.base / f"logs/runs/{run.name}/seed{seed}/train.log", text)

    def job(self, run: Run | Any, seed: int = 0) -> JobStatus:
        return next(job for job in self.gather().jobs if job.name == f"{run.name} seed {seed}")


def marker_of(run: Run | Any, seed: int) -> Raw:
    """A training's marker as tables accept it."""
    return {"seed": seed, "digest": run.name.rsplit("-", 1)[1]}


def evaluation_at(path: str, top1: float) -> Raw:
    """An evaluation as tables accept it."""
    return {
        "digest": Path(path).stem.removeprefix("evaluation-"), "top1": top1, "top5": 95.0, "val_images": 50, "gmacs": 1.0,
        "parameters_m": 1.0, "weights_sha256": hashlib.sha256(path.encode()).hexdigest(),
    }  # fmt: skip


@pytest.fixture
def place(raw_config: Raw, tmp_path: Path) -> Workplace:
    return Workplace(raw_config, tmp_path)


def status_of(capsys: pytest.CaptureFixture[str], *arguments: object) -> Any:
    assert main(["status", "--json", *map(str, arguments)]) == 0
    return json.loads(capsys.readouterr().out)


def test_where_nothing_was_run_it_says_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["status", "--directory", str(tmp_path)]) == 0
    assert f"{tmp_path}: no results here yet" in capsys.readouterr().out
    assert status_of(capsys, "--directory", tmp_path)["tables"] == []
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_is_none_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["status", "--directory", str(tmp_path / "x")]) == 2
    assert "no such folder" in capsys.readouterr().err


def test_what_is_not_begun_waits_for_what_it_needs(place: Workplace) -> None:
    assert place.gather().manifest == JobStatus("manifest", place.study.data.marker, "ready")
    assert (place.job(place.exact).state, place.job(place.exact).reason) == ("waiting", "the manifest")
    assert place.job(place.residual[0]).reason == "the manifest"
    place.manifest()
    assert place.job(place.residual[0]).state == "ready"  # hard labels
    place.shards("a")
    waiting = place.job(place.exact)
    assert (waiting.state, waiting.reason) == ("waiting", f"labels {place.labels.name}: 1 of 2 shards")
    place.shards("a", "b")
    assert place.job(place.exact).state == "ready"
    (labels,) = place.gather().labels
    assert (labels.counts, labels.stale) == ({"done": 2}, [])


def test_fine_tuning_waits_for_the_run_that_it_starts_from(raw_config: Raw, tmp_path: Path) -> None:
    place = Workplace(raw_config, tmp_path)
    raw_config["experiments"]["mine"] = {
        "question": "?", "paper": "none", "seeds": [1],
        "rows": [{"name": "fine", "set": {"train.supervision": "hard", "finetune.supervision": "hard", "finetune_px": [384]}}],
    }  # fmt: skip
    raw_config["select"]["experiments"] = ["mine"]
    place.study = Study.plan(raw_config)
    place.manifest()
    fine = place.study.tables["mine"].rows[0].run
    assert isinstance(fine, Run)
    assert fine.start is not None
    assert place.job(fine, 1).reason == f"{fine.start.name} seed 1"
    assert place.gather().tables[0].trainings == {"ready": 1, "waiting": 1}
    place.done(fine.start, 1)
    assert place.job(fine, 1).state == "ready"


@contextmanager
def owner(lease: Path, code: str = "time.sleep(600)") -> Iterator[subprocess.Popen[str]]:
    """A process of its own that holds a lease with a quick beat, until it is killed."""
    program = (
        "import sys, time; from pathlib import Path; from tokenlabel.core.files import Lease\n"
        f"with Lease(Path({str(lease)!r}), beat_s=0.1): print('held', flush=True); {code}"
    )
    process = subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "held\n"
    try:
        yield process
    finally:
        process.send_signal(signal.SIGCONT)
        process.kill()
        process.wait()
        process.stdout.close()


def test_a_run_is_running_while_its_lease_moves_stalled_while_it_stands_and_interrupted_when_killed(
    place: Workplace,
) -> None:
    place.manifest()
    run = place.residual[0]
    folder = place.base / run.folder / "seed0"
    epochs = [{"epoch": epoch, "steps": 10, "seconds": 60.0 + epoch} for epoch in range(4)]
    lines = [*epochs, {"epoch": 4, "step": 4, "loss": 1.0}]
    write_text(folder / "metrics.jsonl", "".join(json.dumps(line) + "\n" for line in lines) + '{"epoch": 4, "st')
    place.log(run, "INFO command: x", "INFO epoch 3 of 300")
    name = f"{run.name} seed 0"

    def state() -> JobStatus:
        return next(job for job in place.gather(1.5).jobs if job.name == name)

    with owner(folder / "run.lease") as process:
        running = state()
        assert (running.state, running.epochs_done, running.epochs) == ("running", 4, run.epochs)
        assert running.remaining_s == pytest.approx((run.epochs - 4.5) * 62.0)
        process.send_signal(signal.SIGSTOP)
        time.sleep(0.2)
        stalled = state()
        assert (stalled.state, stalled.remaining_s) == ("stalled", None)
    assert (folder / "run.lease").exists()  # left by the kill
    killed = state()
    assert (killed.state, killed.epochs_done) == ("interrupted", 4)
    assert killed.reason.endswith("INFO epoch 3 of 300")
    page = "\n".join(status_lines(place.gather()))
    assert (
        f"  {name}, 4 of {run.epochs} epochs\n      last line: 2026-01-02 03:04:05,678 INFO epoch 3 of 300\n      logs/"
    ) in page


def test_a_lease_of_another_node_stands_still_and_one_that_goes_is_no_lease(tmp_path: Path) -> None:
    for name in ("still", "torn", "going"):
        write_json(tmp_path / name, {"host": "another-node", "pid": 1, "job": "77", "counter": 5})
    (tmp_path / "torn").write_text('{"host')
    ours = Lease(tmp_path / "mine", beat_s=0.05)
    ours._owner["host"] = "another-node"
    with ours:
        code = f"import time, os; time.sleep(0.4); os.unlink({str(tmp_path / 'going')!r})"
        process = subprocess.Popen([sys.executable, "-c", code])
        states = look_at_leases(sorted(tmp_path.iterdir()), 2.0)
        process.wait()
    assert {path.name: state for path, state in states.items()} == {
        "still": "stalled", "torn": "stalled", "mine": "running",
    }  # fmt: skip
    assert LOOK_S <= 3


def test_a_job_that_failed_says_why_from_its_own_log(place: Workplace, tmp_path: Path) -> None:
    place.manifest()
    run = place.residual[0]
    log = tmp_path / "logs" / "runs" / run.name / "seed0" / "train.log"

    def job(error: Exception | None) -> int:
        def runs(_: argparse.Namespace) -> int:
            logger.info("command: tokenlabel train")
            if error:
                raise error
            return 0

        try:
            return run_command(runs, argparse.Namespace(log=log))
        finally:
            set_up_logging(None)

    assert job(DataError("train/n01440764: this class folder\nholds no image file.")) == 2
    failed = place.job(run)
    assert failed.state == "failed"
    assert failed.reason == "train/n01440764: this class folder holds no image file."
    assert failed.log == str(log.relative_to(tmp_path))
    with pytest.raises(ZeroDivisionError):
        job(ZeroDivisionError("a bug of ours"))
    assert place.job(run).reason == "ZeroDivisionError: a bug of ours"
    stopped = TokenLabelError("SIGTERM: saved")
    stopped.exit_code = 143
    assert job(stopped) == 143  # told to stop: the next call goes on
    assert (place.job(run).state, "SIGTERM: saved" in place.job(run).reason) == ("interrupted", True)
    assert job(None) == 0  # a new attempt, killed without a word: the older error is not its own
    assert place.job(run).state == "interrupted"
    page = "\n".join(status_lines(place.gather()))
    assert f"\n      {failed.log}" in page


def test_a_job_without_a_lease_may_be_running_also_before_its_logs_first_line(place: Workplace) -> None:
    place.manifest()
    place.done(place.exact)
    log = place.base / place.exact.result(0).replace("results/", "logs/", 1).replace(".json", ".log")
    for text, said in (
        ("", "it may be running"),
        ("2026-01-02 03:04:05,678 INFO x\n", "it may be running; last line: 2026-"),
    ):
        write_text(log, text)
        (job,) = [job for job in place.gather().jobs if job.path == place.exact.result(0)]
        assert job.state == "interrupted"
        assert job.reason.startswith(said)


def test_a_log_of_other_bytes_is_read_as_far_as_it_goes(tmp_path: Path) -> None:
    path = tmp_path / "x.log"
    path.write_bytes(b"\xff\xfe\n" * 40_000 + b"2026-01-02 03:04:05,678 ERROR no space\n")
    assert read_log_end(path).error == "no space"
    path.write_bytes(b"")
    assert read_log_end(path).last == ""


def test_progress_needs_an_epoch_to_know_the_speed() -> None:
    assert training_progress([], 3).remaining_s is None
    first = training_progress([{"epoch": 0, "step": 5}], 3)
    assert (first.epochs, first.remaining_s) == (0, None)
    assert training_progress([{"epoch": 2, "seconds": 5.0}], 3).remaining_s == 0


def test_a_table_is_planned_partial_complete_current_or_stale(place: Workplace) -> None:
    place.manifest()

    def state() -> tuple[str, int]:
        table = next(table for table in place.gather().tables if table.name == "ablation_geometry")
        assert table.evaluations == 4
        return table.state, table.evaluated

    assert state() == ("planned", 0)
    for run in (place.exact, place.released):
        for seed in (0, 1):
            place.done(run, seed)
    place.evaluated(place.exact, 0)
    assert state() == ("partial", 1)
    for run, seed in ((place.exact, 1), (place.released, 0), (place.released, 1)):
        place.evaluated(run, seed, 81.0)
    assert state() == ("complete", 4)
    table = place.study.tables["ablation_geometry"]
    write_text(place.base / table.csv, as_csv(collect_rows(table.as_json(), place.base)))
    assert state() == ("current", 4)
    place.evaluated(place.released, 1, 70.0)  # measured again
    assert state() == ("stale", 4)
    place.evaluated(place.released, 1, 81.0)
    place.raw["experiments"]["ablation_geometry"]["rows"][1]["paper_top1"] = 80.5
    place.study = Study.plan(place.raw)
    assert state() == ("stale", 4)  # the row has a number to be compared with, and the file has not
    place.raw["experiments"]["ablation_geometry"]["seeds"] = [0]
    place.study = Study.plan(place.raw)
    assert place.gather().tables[1].state == "stale"  # of two seeds, and one is selected now
    write_text(place.base / table.csv, "something else\n")
    assert place.gather().tables[1].state == "stale"


@pytest.mark.parametrize(("key", "value"), [("top1", float("nan")), ("digest", "00000000")])
def test_an_evaluation_that_tables_refuse_is_not_done(place: Workplace, key: str, value: Any) -> None:
    place.done(place.exact)
    path = place.exact.result(0)
    write_text(place.base / path, json.dumps(evaluation_at(path, 80.0) | {key: value}))
    status = place.gather()
    table = status.tables[1]
    assert (table.state, table.evaluated) == ("unreadable", 0)
    (problem,) = status.problems
    assert path in problem
    assert problem.endswith("Delete it and run snakemake again.")


def test_shards_of_other_photographs_are_stale(place: Workplace) -> None:
    place.manifest(("a", "new"))
    place.shards("a", "b")
    (labels,) = place.gather().labels
    assert labels.stale == [place.labels.markers[1]]
    assert "2 shards: 2 done; 1 stale" in "\n".join(status_lines(place.gather()))


def test_what_nothing_selected_needs_is_named_with_the_command_that_removes_it(place: Workplace) -> None:
    base, quoted = place.base, place.base / "results/runs/a b-00000000"
    other = next(run for run in place.study.runs.values() if run.name.startswith("mixer"))
    place.done(place.exact)
    place.done(place.exact, seed=5)
    place.done(other)
    write_text(quoted / "seed0" / "done.json", "{}" * 500)
    write_text(base / "results/labels/old-11111111/train-00000-of-00002.h5", "x" * 4000)
    write_text(base / "results/labels/busy-22222222/train-00000-of-00002.h5", "x" * 4000)
    write_json(base / "results/labels/busy-22222222/x.lease", {"host": "another-node", "pid": 1, "counter": 1})
    status = place.gather()
    found = {item.folder: item for item in status.unreferenced}
    assert {folder: item.why for folder, item in found.items()} == {
        "results/labels/busy-22222222": "of another configuration; a job works in it",
        "results/labels/old-11111111": "of another configuration",
        "results/runs/a b-00000000": "of another configuration",
        other.folder: "in the catalogue, not selected",
        f"{place.exact.folder}/seed5": "a seed that is not selected",
    }
    assert found["results/labels/old-11111111"].size_bytes == 4000
    assert found["results/labels/busy-22222222"].command == ""
    assert found["results/runs/a b-00000000"].command == f"rm -r '{quoted}'"
    assert subprocess.run(found["results/runs/a b-00000000"].command, shell=True, check=True).returncode == 0
    assert not quoted.exists()
    assert place.gather().disk_bytes["labels"] > 8000
    assert "4.0 kB  rm -r" in "\n".join(status_lines(status))


def test_what_cannot_be_read_is_named_and_the_rest_is_told(place: Workplace) -> None:
    place.manifest()
    place.shards("a", "b")
    write_text(place.base / place.exact.done(0), '{"seed": ')
    write_text(place.base / place.released.done(0), "[]")
    place.done(place.exact, 1)
    write_text(place.base / place.exact.result(1), "{")
    place.done(place.residual[1])
    status = place.gather()
    assert sum(job.state == "unreadable" for job in status.jobs) == 3
    residual, geometry = status.tables
    assert geometry.state == "unreadable"
    assert residual.trainings == {"done": 1, "ready": 2}
    for path in (place.exact.done(0), place.released.done(0), place.exact.result(1)):
        (problem,) = [text for text in status.problems if path in text]
        assert "JSON" in problem
    write_text(place.base / place.study.data.marker, "[]")
    assert place.gather().manifest.state == "unreadable"  # type: ignore[union-attr]


def test_metrics_that_no_training_wrote_are_named_and_the_rest_is_told(place: Workplace) -> None:
    place.manifest()
    place.shards("a", "b")
    run = place.residual[0]
    metrics = place.base / run.folder / "seed0" / "metrics.jsonl"
    sound = '{"epoch": 0, "steps": 2, "seconds": 3.0}'
    for line in ('{"epoch": "1", "seconds": 3.0}', '{"epoch": null, "step": 1}', '{"epoch": 1, "seconds": "long"}'):
        write_text(metrics, f"{sound}\n{line}\n")
        assert place.job(run).epochs_done == 1
        (problem,) = place.gather().problems
        assert f"{metrics}: {line!r} is no line of a training" in problem
    write_text(metrics, f'{sound}\n{{"epoch": 1, "seconds": null}}\n')
    lease = metrics.with_name("run.lease")
    with owner(lease):
        found = next(job for job in place.gather(LOOK_S).jobs if job.name == f"{run.name} seed 0")
        assert (found.state, found.epochs_done, found.remaining_s) == ("running", 1, (run.epochs - 1) * 3.0)
    write_text(lease, "[]")
    assert place.job(run).state == "stalled"


@pytest.mark.parametrize(
    "content", [None, "{", "[]", '{"a": 1}'], ids=["missing", "torn", "a list", "another version's"]
)
def test_without_a_plan_it_says_why_and_what_lies_there(
    place: Workplace, capsys: pytest.CaptureFixture[str], content: str | None
) -> None:
    place.done(place.exact)
    path = place.base / "results" / "study.json"
    path.unlink()
    if content:
        path.write_text(content)
    found = status_of(capsys, "--directory", place.base)
    assert "give the study's overlays with --configfile" in found["problems"][0]
    assert found["disk_bytes"]["records of runs"] > 0
    assert found["tables"] == found["unreferenced"] == []


def test_overlays_take_the_place_of_the_last_configuration(
    place: Workplace, capsys: pytest.CaptureFixture[str], repository: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(repository)
    overlay = place.base / "mine.yaml"
    overlay.write_text("select: {annotators: [], experiments: [ablation_residual]}\n")
    found = status_of(capsys, "--directory", place.base, "--configfile", overlay)
    assert [table["name"] for table in found["tables"]] == ["ablation_residual"]
    found = status_of(capsys, "--directory", place.base)
    assert [table["name"] for table in found["tables"]] == ["ablation_residual", "ablation_geometry"]
    assert {job["state"] for job in found["jobs"]} <= STATES.keys()
    overlay.write_text("select: {experiments: [no_such]}\n")
    assert main(["status", "--directory", str(place.base), "--configfile", str(overlay)]) == 2
    assert "unknown experiment 'no_such'" in capsys.readouterr().err


@contextmanager
def as_another_user() -> Iterator[None]:
    """Without root's right to read everything."""
    if os.geteuid() != 0:
        yield
        return
    os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(0)


def test_a_tree_that_may_only_be_read_and_one_with_a_closed_folder(
    place: Workplace, capsys: pytest.CaptureFixture[str]
) -> None:
    place.manifest()
    place.done(place.exact)
    closed = place.base / place.released.folder
    place.done(place.released)
    for folder in [place.base, *(path for path in place.base.rglob("*") if path.is_dir())]:
        folder.chmod(0o555)
    parents = [
        folder for folder in place.base.parents if folder.stat().st_mode & 0o005 != 0o005 and folder != Path("/")
    ]
    before = {folder: folder.stat().st_mode for folder in parents}
    closed.chmod(0)
    try:
        for folder in parents:
            folder.chmod(0o755)
        with as_another_user():
            found = status_of(capsys, "--directory", place.base)
    finally:
        for folder, mode in before.items():
            folder.chmod(mode)
        closed.chmod(0o755)
        for folder in [place.base, *(path for path in place.base.rglob("*") if path.is_dir())]:
            folder.chmod(0o755)
    assert f"{closed}: cannot be listed (Permission denied)" in found["problems"]
    residual, geometry = found["tables"]
    assert geometry["trainings"]["done"] == 1
    assert residual["trainings"] == {"ready": 3}


def test_thousands_of_runs_take_seconds(raw_config: Raw, tmp_path: Path) -> None:
    seeds = list(range(300))
    raw_config["experiments"]["ablation_architectures"]["seeds"] = seeds
    raw_config["select"] = {"annotators": [], "experiments": ["ablation_architectures"]}
    study = Study.plan(raw_config)
    runs = [row.run for row in study.tables["ablation_architectures"].rows]
    for run in runs[:2]:
        for seed in seeds:
            (tmp_path / run.done(seed)).parent.mkdir(parents=True)
            (tmp_path / run.done(seed)).write_text(json.dumps(marker_of(run, seed)))
            (tmp_path / run.result(seed)).write_text(json.dumps(evaluation_at(run.result(seed), 1.0)))
    started = time.process_time()
    status = gather(tmp_path, study, "here")
    taken_s = time.process_time() - started
    assert status.tables[0].trainings == {"done": 600, "waiting": 1800}
    assert status.tables[0].evaluated == 600
    assert taken_s < 5
    assert "and 1" not in "\n".join(status_lines(status))  # what waits is counted, not listed


def test_two_runs_beside_each_other(place: Workplace, capsys: pytest.CaptureFixture[str]) -> None:
    place.manifest()
    for run, commit, torch, top1 in ((place.exact, "aaa", "2.1", 83.25), (place.released, "bbb", "2.2", 82.5)):
        path, spec = run.document
        write_json(place.base / path, spec)
        place.done(run)
        place.evaluated(run, top1=top1)
        write_json(
            place.base / run.folder / "seed0" / "summary.json",
            {"commit": commit, "versions": {"torch": torch, "numpy": "2"}, "device": "cpu", "final": {"top1": top1}},
        )
    difference = compare_runs(place.base, place.exact.name, f"{place.released.name}/seed0")
    assert difference.groups["settings"] == {"recipe.geometry": ("exact", "released")}
    assert difference.groups["code"] == {"commit": ("aaa", "bbb"), "versions.torch": ("2.1", "2.2")}
    assert difference.groups["machine"] == {}
    assert difference.groups["data"] == {}
    assert difference.groups["results"]["final.top1"] == (83.25, 82.5)
    evaluation = Path(place.exact.result(0)).stem
    assert difference.groups["results"][f"{evaluation}.top1"] == (83.25, 82.5)
    assert difference.groups["results"][f"{evaluation}.val_images"] == (50, 50)

    names = [place.exact.name, str(place.base / place.released.folder / "seed0")]
    assert main(["status", "--directory", str(place.base), "--diff", *names]) == 0
    page = capsys.readouterr().out
    for line in (r"  recipe.geometry", "exact", "released", "(no difference)", "83.25", "82.5"):
        assert line in page
    assert main(["status", "--directory", str(place.base), "--diff", place.exact.name[:-1], names[1]]) == 2
    assert f"Did you mean '{place.exact.name}'" in capsys.readouterr().err
    for name, expected in ((f"{place.exact.name}/seed7", "no seed7. It has: seed0."), ("empty", "empty: no spec.json")):
        (place.base / "results/runs/empty").mkdir(exist_ok=True)
        assert main(["status", "--directory", str(place.base), "--diff", name, names[1]]) == 2
        error = capsys.readouterr().err
        assert expected in error
        assert "Did you mean" not in error


def test_two_segmenters_beside_each_other(raw_config: Raw, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = Study.plan(raw_config).segmentation_tables["segmentation"].rows
    runs = [row.run for row in rows if row.head == "upernet"][:2]  # own labels, token labels
    for run, miou in zip(runs, (46.5, 47.9), strict=True):
        folder = tmp_path / run.folder
        write_json(tmp_path / run.document[0], run.spec)
        write_json(folder / "seed0" / "summary.json", {"final": {"epoch": 39, "miou": miou}, "device": "cuda"})
        write_json(tmp_path / run.result(0), {"single": {"miou": miou}, "images": 2000, "seconds": 1.0})
    write_json(tmp_path / runs[0].scenes.marker, {"splits": {"val": {}}})
    difference = compare_runs(tmp_path, runs[0].name, f"{runs[1].name}/seed0")
    assert (difference.first, difference.second) == tuple(f"{run.name}/seed0" for run in runs)
    assert list(difference.groups["settings"]) == ["start"]
    assert difference.groups["data"] == {}
    assert difference.groups["results"]["final.miou"] == (46.5, 47.9)
    evaluation = Path(runs[0].result(0)).stem
    assert difference.groups["results"][f"{evaluation}.single.miou"] == (46.5, 47.9)
    assert difference.groups["results"][f"{evaluation}.images"] == (2000, 2000)
    place = compare_runs(tmp_path, f"results/segmentation/{runs[0].name}", str(tmp_path / runs[1].folder / "seed0"))
    assert place.groups == difference.groups
    assert main(["status", "--directory", str(tmp_path), "--diff", runs[0].name[:-1], runs[1].name]) == 2
    assert f"Did you mean '{runs[0].name}'" in capsys.readouterr().err


def test_the_manifest_of_a_segmenter_is_that_of_its_scenes(raw_config: Raw, tmp_path: Path) -> None:
    first = Study.plan(raw_config).segmentation_tables["segmentation"].rows[0].run
    raw_config["segmentation"]["dataset"]["version"] = "other"
    second = Study.plan(raw_config).segmentation_tables["segmentation"].rows[0].run
    for run, scenes in ((first, 2000), (second, 1999)):
        write_json(tmp_path / run.document[0], run.spec)
        write_json(tmp_path / run.scenes.marker, {"splits": {"val": {"images": scenes}}})
    difference = compare_runs(tmp_path, first.name, second.name)
    assert list(difference.groups["settings"]) == ["dataset.release"]
    before, after = difference.groups["data"]["manifest"]
    assert None not in (before, after)


def test_a_run_without_an_end_and_a_torn_file_are_compared_as_far_as_they_go(place: Workplace) -> None:
    for run in (place.exact, place.residual[0]):
        write_json(place.base / run.document[0], run.spec)
    write_text(place.base / place.exact.folder / "seed1" / "done.json", "{")
    difference = compare_runs(place.base, place.exact.name, place.residual[0].name)
    assert difference.groups["results"] == {}
    assert difference.groups["settings"]["recipe.supervision"] == ("token", "hard")
    assert difference.groups["settings"]["labels.annotator.architecture"] == ("dm_nfnet_f6.dm_in1k", None)
    (problem,) = difference.problems
    assert "seed1/done.json: cannot be read" in problem
    write_text(place.base / place.exact.document[0], "{")
    with pytest.raises(DataError, match=r"spec\.json: cannot be read"):
        compare_runs(place.base, place.exact.name, place.residual[0].name)


@pytest.mark.parametrize(
    ("value", "said"),
    [(5, "5 B"), (1500, "1.5 kB"), (834_000, "834 kB"), (20.8e6, "20.8 MB"), (330e9, "330 GB"), (2e12, "2.0 TB")],
)
def test_sizes_are_decimal(value: float, said: str) -> None:
    assert in_bytes(value) == said


@pytest.mark.parametrize(("value", "said"), [(20, "20 s"), (3599, "1 h 0 min"), (600, "10 min"), (200_000, "2 d 7 h")])
def test_times_have_two_units(value: float, said: str) -> None:
    assert in_time(value) == said
