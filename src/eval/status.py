"""Where a study stands, gathered from its folder: what is done, running, failed or stale, and what no selection refers to.

Called by `tokenlabel status`. Loads no torch, reads only, and takes any half-written tree: what cannot be read is named among the
problems and the rest is still told. The walk over the files comes first, then the leases, then markers, so that a job which ends
meanwhile is seen as finished.
"""

from __future__ import annotations

import csv
import io
import math
import re
import shlex
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..core.errors import DataError
from ..core.files import read_json
from ..core.metrics_lines import parse_metrics_line
from ..core.planned import AnnotatorJob, LabelJob, Run, Table, Training
from ..core.segment_plan import SceneJob, SegmentationRun, SegmentationTable
from ..core.staleness import stale_shards
from ..core.study import Study
from .disk_use import Tree
from .job_states import LOOK_S, State, look_at_leases, read_log_end, training_progress
from .results import read_result
from .segmentation_results import read_segmentation
from .segmentation_table import as_csv as segmentation_csv
from .segmentation_table import collect_segmentation
from .tables import as_csv, collect_rows

FOLDERS = ("results", "logs", "benchmarks")
KINDS_OF_FOLDERS = ("runs", "labels", "annotators", "data", "segmentation", "scenes")
METRICS_TAIL_BYTES = 262_144
NOT_COMPARED = {"gpu_hours"}  # of a table on the disk with one made now: a benchmark file decides nothing but hours


@dataclass(frozen=True)
class JobStatus:
    """One output of the study.

    Attributes:
        name: what it is, `RUN seed N` for a training.
        path: of its marker or result.
        state: a key of job_states.STATES.
        reason: the error, what it waits for, or the last line of its log; "" where there is nothing to say.
        log: that the reason was read from, "" for none.
        epochs_done, epochs, remaining_s: of a training; None for others and where nothing is known.
    """

    name: str
    path: str
    state: State
    reason: str = ""
    log: str = ""
    epochs_done: int | None = None
    epochs: int | None = None
    remaining_s: float | None = None


@dataclass(frozen=True)
class LabelsStatus:
    """One annotator's shards.

    Attributes:
        counts: state -> shards; stale ones are among the finished.
        stale: markers of shards that are of other photographs than the manifest's.
    """

    name: str
    counts: dict[str, int]
    stale: list[str]


@dataclass(frozen=True)
class TableStatus:
    """One selected table.

    Attributes:
        state: current; stale (the file says something else than the evaluations or the configuration); complete (nothing but the
            table is missing); partial; planned (no evaluation yet); unreadable.
        trainings: state -> trainings of its rows and seeds, with those that they start from.
        evaluated, evaluations: done, of how many.
    """

    name: str
    state: str
    trainings: dict[str, int]
    evaluated: int
    evaluations: int


@dataclass(frozen=True)
class Unreferenced:
    """A folder that nothing selected needs; `command` removes it, "" while a job works in it."""

    folder: str
    size_bytes: int
    why: str
    command: str


@dataclass
class Status:
    """All of it. Paths are relative to `directory`, sizes in bytes."""

    directory: str
    configuration: str
    manifest: JobStatus | None = None
    labels: list[LabelsStatus] = field(default_factory=list)
    tables: list[TableStatus] = field(default_factory=list)
    jobs: list[JobStatus] = field(default_factory=list)
    disk_bytes: dict[str, int] = field(default_factory=dict)
    unreferenced: list[Unreferenced] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)


def gather(base: Path, study: Study | None, configuration: str, look_s: float = LOOK_S) -> Status:
    """Looks at a study's folder.

    Args:
        base: folder that holds results/ and logs/.
        study: the plan; None: only what lies there is told.
        configuration: where the plan is from, in words.
        look_s: longest time between two looks at the leases, in seconds.
    """
    tree = Tree.of(base, FOLDERS)
    leases = look_at_leases((base / path for path in tree.sizes if path.endswith(".lease")), look_s)
    held: dict[str, State] = {path.relative_to(base).as_posix(): state for path, state in leases.items()}
    status = Status(str(base.resolve()), configuration, disk_bytes=tree.by_kind(), problems=tree.problems)
    if study is not None:
        _Survey(base, study, tree, held, status).fill()
    return status


class _Survey:
    """Fills a Status from a plan and the files that there are."""

    def __init__(self, base: Path, study: Study, tree: Tree, held: dict[str, State], status: Status) -> None:
        self._base, self._study, self._tree, self._held, self._status = base, study, tree, held, status
        self._trainings: dict[str, JobStatus] = {}
        self._results: dict[str, JobStatus] = {}
        self._labels: dict[str, LabelsStatus] = {}

    def fill(self) -> None:
        """All parts, in the order in which they depend on each other."""
        study, status = self._study, self._status
        data = study.data
        status.manifest = self._job("manifest", data.marker, None, [f"logs/data/{data.name}.log"], "")
        needed = needed_of(study)
        for annotator in needed.annotators:
            if annotator.adapted:
                self._results[annotator.marker] = self._adapting(annotator)
        for labels in needed.labels:
            self._labels[labels.name] = self._label_shards(labels)
        for scenes in needed.scenes:
            logs = [f"logs/scenes/{scenes.name}.log"]
            self._results[scenes.marker] = self._job(f"scenes {scenes.name}", scenes.marker, None, logs, "")
        for run, seed in [*needed.trainings, *needed.segmenters]:
            self._trained(run, seed)
        status.labels = list(self._labels.values())
        status.tables = [self._table(table) for table in study.selected_tables]
        status.tables += [self._table(transfer) for transfer in study.selected_segmentations]
        known = [status.manifest, *self._results.values(), *self._trainings.values()]
        status.jobs = [job for job in known if job.state != "done"] + status.jobs
        status.unreferenced = list(self._unreferenced(needed))

    def _job(
        self, name: str, marker: str, lease: str | None, logs: Sequence[str], lacking: str, begun: bool = False
    ) -> JobStatus:
        """State of one job by its traces.

        Args:
            lease: None where such jobs hold none; then a log without an end may be of a job that runs.
            logs: of its attempts, the last one last.
            lacking: what it needs and is not there, "" for nothing.
            begun: whether there are other traces of it.
        """
        if lease in self._held:
            return JobStatus(name, marker, self._held[lease])
        if self._is_there(marker):  # also one that appeared since the walk
            return self._readable(name, marker)
        existing = [log for log in logs if log in self._tree.sizes]
        if not existing:
            if begun:
                return JobStatus(name, marker, "interrupted")
            return JobStatus(name, marker, "waiting" if lacking else "ready", lacking)
        log = existing[-1]
        try:
            end = read_log_end(self._base / log)
        except OSError as error:
            self._status.problems.append(f"{self._base / log}: cannot be read ({error.strerror})")
            return JobStatus(name, marker, "interrupted", log=log)
        if end.error:
            return JobStatus(name, marker, "failed", end.error, log)
        # without a lease nobody can tell; a job that has just begun has an empty log
        reasons = [*([] if lease else ["it may be running"]), *([f"last line: {end.last}"] if end.last else [])]
        return JobStatus(name, marker, "interrupted", "; ".join(reasons), log)

    def _is_there(self, path: str) -> bool:
        """Whether a file exists; also where nobody can tell, because reading it then says why."""
        try:
            (self._base / path).stat()
        except (FileNotFoundError, NotADirectoryError):
            return False
        except OSError:
            return True
        return True

    def _readable(self, name: str, path: str) -> JobStatus:
        try:
            if isinstance(read_json(self._base / path), dict):
                return JobStatus(name, path, "done")
            reason = "is no JSON object"
        except OSError as error:
            reason = f"cannot be read ({error.strerror})"
        except ValueError as error:
            reason = f"is no whole JSON document ({error})"
        self._status.problems.append(f"{self._base / path}: {reason}")
        return JobStatus(name, path, "unreadable", reason)

    def _lacking_manifest(self) -> str:
        manifest = self._status.manifest
        return "" if manifest is not None and manifest.state == "done" else "the manifest"

    def _adapting(self, job: AnnotatorJob) -> JobStatus:
        lacking = self._lacking_manifest()
        if job.run is not None and self._trained(job.run, 0).state != "done":
            lacking = lacking or f"{job.run.name} seed 0"
        lease, logs = job.marker.replace(".done", ".lease"), [f"logs/annotators/{job.name}/adapted.log"]
        return self._job(f"annotator {job.name}", job.marker, lease, logs, lacking)

    def _label_shards(self, job: LabelJob) -> LabelsStatus:
        lacking = self._lacking_manifest()
        if job.adapted and self._results[job.adapted.marker].state != "done":
            lacking = lacking or f"annotator {job.adapted.name}"
        splits = ["train", "val"] if self._study.reference is job else ["train"]
        shards = []
        for marker in (marker for split in splits for marker in job.markers_of(split)):
            stem = marker.removesuffix(".done")
            log = f"logs/{stem.removeprefix('results/')}.log"
            begun = f"{stem}.parts/made_by.json" in self._tree.sizes
            shards.append(
                self._job(stem.removeprefix("results/labels/"), marker, f"{stem}.lease", [log], lacking, begun)
            )
        self._status.jobs += [shard for shard in shards if shard.state not in ("done", "ready", "waiting")]
        stale = [str(path.relative_to(self._base)) for path in stale_shards(self._base / job.folder, self._digests())]
        return LabelsStatus(job.name, dict(Counter(shard.state for shard in shards)), stale)

    def _digests(self) -> dict[str, list[str]]:
        """The manifest's digest of each shard; empty where there is no manifest or a damaged one, which is named already."""
        try:
            said = read_json(self._base / self._study.data.marker)
            return {split: found["shard_digests"] for split, found in said["splits"].items()}
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            return {}

    def _trained(self, run: Training, seed: int) -> JobStatus:
        """State of a training, looked at once."""
        marker = run.done(seed)
        if marker not in self._trainings:
            self._trainings[marker] = self._training(run, seed)
        return self._trainings[marker]

    def _training(self, run: Training, seed: int) -> JobStatus:
        folder = f"{run.folder}/seed{seed}"
        logs = f"logs/{run.kind}/{run.name}/seed{seed}"
        legs = sorted(path.relative_to(self._base).as_posix() for path in (self._base / logs).glob("leg-*.log"))
        begun = f"{folder}/metrics.jsonl" in self._tree.sizes
        job = self._job(
            f"{run.name} seed {seed}", run.done(seed), f"{folder}/run.lease", [*legs, f"{logs}/train.log"],
            self._lacking_of(run, seed), begun,
        )  # fmt: skip
        if job.state in ("done", "ready", "waiting"):
            return job
        progress = training_progress(self._metrics(f"{folder}/metrics.jsonl"), run.epochs)
        return JobStatus(
            job.name, job.path, job.state, job.reason, job.log, progress.epochs, run.epochs,
            progress.remaining_s if job.state == "running" else None,
        )  # fmt: skip

    def _lacking_of(self, run: Training, seed: int) -> str:
        if isinstance(run, SegmentationRun):
            if self._results[run.scenes.marker].state != "done":
                return f"scenes {run.scenes.name}"
        elif lacking := self._lacking_manifest():
            return lacking
        if isinstance(run, Run) and run.labels is not None:
            counts = self._labels[run.labels.name].counts
            done, shards = counts.get("done", 0), sum(counts.values())
            if done < shards:
                return f"labels {run.labels.name}: {done} of {shards} shards"
        if run.start is not None and self._trained(run.start, seed).state != "done":
            return f"{run.start.name} seed {seed}"
        return ""

    def _metrics(self, path: str) -> list[dict[str, Any]]:
        """The last lines of metrics.jsonl; empty where there are none."""
        try:
            with open(self._base / path, "rb") as file:
                size = file.seek(0, 2)
                file.seek(max(0, size - METRICS_TAIL_BYTES))
                text = file.read().decode("utf-8", errors="replace")
        except FileNotFoundError:
            return []
        except OSError as error:
            self._status.problems.append(f"{self._base / path}: cannot be read ({error.strerror})")
            return []
        found = []
        for line in text.splitlines():
            try:
                said = parse_metrics_line(line, self._base / path)
            except ValueError:  # the first of the tail, or one being written
                continue
            except DataError as error:
                self._status.problems.append(str(error))
                continue
            measured = [said[name] for name in ("seconds", "steps") if name in said]
            if ("step" in said or "seconds" in said) and all(map(math.isfinite, measured)):
                found.append(said)
        return found

    def _table(self, table: Table | SegmentationTable) -> TableStatus:
        measured = {row.run.name: row.run for row in table.rows}.values()
        runs = [part for run in measured if not isinstance(run, AnnotatorJob) for part in _chain_of(run)]
        trainings = {run.done(seed): self._trained(run, seed).state for run in runs for seed in table.seeds}
        results = {run.result(seed): self._result(run, seed) for run in measured for seed in table.seeds}
        evaluated = sum(result.state == "done" for result in results.values())
        unreadable = any(result.state == "unreadable" for result in results.values())
        state = "unreadable" if unreadable else self._state_of_file(table, evaluated, len(results))
        return TableStatus(table.name, state, dict(Counter(trainings.values())), evaluated, len(results))

    def _result(self, run: Training | AnnotatorJob, seed: int) -> JobStatus:
        path = run.result(seed)
        if path not in self._results:
            stem = path.removeprefix("results/").removesuffix(".json")
            # None: an annotator whose weights come as they are
            measured = self._trained(run, seed) if isinstance(run, Training) else self._results.get(run.marker)
            lacking = measured.name if measured is not None and measured.state != "done" else ""
            name = f"evaluation of {measured.name if measured is not None else run.name}"
            job = self._job(name, path, None, [f"logs/{stem}.log"], lacking)
            self._results[path] = self._accepted(job, run) if job.state == "done" else job
        return self._results[path]

    def _accepted(self, job: JobStatus, run: Training | AnnotatorJob) -> JobStatus:
        """An evaluation that is there; unreadable where tables would refuse it, as one with a NaN or of another run."""
        try:
            if isinstance(run, SegmentationRun):
                read_segmentation(self._base / job.path, run.name)
            else:
                read_result(self._base / job.path, run.name)
        except (OSError, DataError) as error:
            self._status.problems.append(str(error))
            return JobStatus(job.name, job.path, "unreadable", str(error))
        return job

    def _state_of_file(self, table: Table | SegmentationTable, evaluated: int, evaluations: int) -> str:
        path = self._base / table.csv
        if not self._is_there(table.csv):
            if evaluated == evaluations:
                return "complete"
            return "partial" if evaluated else "planned"
        try:
            before = list(csv.DictReader(io.StringIO(path.read_text(encoding="utf-8"))))
            now = list(csv.DictReader(io.StringIO(self._csv_now(table))))
        except (OSError, ValueError, KeyError, TypeError, DataError) as error:
            self._status.problems.append(f"{path}: cannot be compared with its evaluations ({error})")
            return "unreadable"
        said, found = (
            [{column: cell for column, cell in row.items() if column not in NOT_COMPARED} for row in several]
            for several in (before, now)
        )
        return "current" if said == found else "stale"

    def _csv_now(self, table: Table | SegmentationTable) -> str:
        """The table as it would be made now."""
        if isinstance(table, SegmentationTable):
            return segmentation_csv(collect_segmentation(table.as_json(), self._base, complete=False))
        return as_csv(collect_rows(table.as_json(), self._base, complete=False))

    def _unreferenced(self, needed: Needed) -> Iterator[Unreferenced]:
        """Folders of runs, seeds, labels, annotators and manifests that nothing selected needs."""
        study = self._study
        trainings = [*needed.trainings, *needed.segmenters]
        seeds = {f"{run.folder}/seed{seed}" for run, seed in trainings}
        kept_runs = {run.folder for run, _ in trainings}
        kept = {job.folder for job in (study.data, *needed.annotators, *needed.labels, *needed.scenes)} | kept_runs
        catalogue = {
            job.folder
            for jobs in (study.annotators, study.labels, study.runs, study.scenes, study.segmentations)
            for job in jobs.values()
        }
        for folder, size in sorted(self._tree.by_folder(3).items()):
            top, kind, _ = folder.split("/")
            if top != "results" or kind not in KINDS_OF_FOLDERS or folder in kept:
                continue
            why = "in the catalogue, not selected" if folder in catalogue else "of another configuration"
            yield self._removable(folder, size, why)
        for folder, size in sorted(self._tree.by_folder(4).items()):
            run, _, last = folder.rpartition("/")
            if run in kept_runs and re.fullmatch(r"seed\d+", last) and folder not in seeds:
                yield self._removable(folder, size, "a seed that is not selected")

    def _removable(self, folder: str, size: int, why: str) -> Unreferenced:
        if any(lease.startswith(f"{folder}/") for lease in self._held):
            return Unreferenced(folder, size, f"{why}; a job works in it", "")
        return Unreferenced(folder, size, why, f"rm -r {shlex.quote(str(self._base / folder))}")


@dataclass(frozen=True)
class Needed:
    """What the selection refers to, each once; a run stands after the one that it starts from."""

    trainings: list[tuple[Run, int]]
    labels: list[LabelJob]
    annotators: list[AnnotatorJob]
    segmenters: list[tuple[SegmentationRun, int]]
    scenes: list[SceneJob]


def _chain_of(run: Training) -> list[Training]:
    """A run after those that it starts from, the first training first."""
    return [*(run.start.chain if run.start else []), run]


def needed_of(study: Study) -> Needed:
    """Everything that the selected tables, annotators and evaluations of a study refer to."""
    trainings: dict[str, tuple[Run, int]] = {}
    labels: dict[str, LabelJob] = {}
    annotators: dict[str, AnnotatorJob] = {}

    def take_annotator(job: AnnotatorJob) -> None:
        if job.run is not None:
            take_run(job.run, 0)
        annotators[job.name] = job

    def take_labels(job: LabelJob) -> None:
        if job.adapted is not None:
            take_annotator(job.adapted)
        labels[job.name] = job

    def take_run(run: Run, seed: int) -> None:
        for part in run.chain:
            if part.labels is not None:
                take_labels(part.labels)
            trainings[part.done(seed)] = (part, seed)

    for label_job in [*study.selected_labels, *([study.reference] if study.reference else [])]:
        take_labels(label_job)
    for table in study.selected_tables:
        for row in table.rows:
            if isinstance(row.run, AnnotatorJob):
                take_annotator(row.run)
                continue
            for seed in table.seeds:
                take_run(row.run, seed)
    segmenters = [found for transfer in study.selected_segmentations for found in transfer.trainings]
    for segmenter, seed in segmenters:
        if segmenter.start is not None:
            take_run(segmenter.start, seed)
    scenes = {run.scenes.name: run.scenes for run, _ in segmenters}
    return Needed(
        list(trainings.values()),
        list(labels.values()),
        list(annotators.values()),
        list({run.done(seed): (run, seed) for run, seed in segmenters}.values()),
        list(scenes.values()),
    )
