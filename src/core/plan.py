"""What a study costs, target by target: jobs, GPU hours, wall time, storage, money; before it runs, and while it does.

Called by rules/plan.smk and the command. Of jobs that are finished it takes what they measured; those to come of the same kind
(the stage with its annotator or model) are scaled by what the finished ones took over what was estimated for them; the rest
is the estimate of `plan_jobs`. Reads markers and benchmark files, never a photograph; writes nothing.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from .benchmarks import job_seconds, run_processes, run_seconds
from .plan_jobs import STAGES, Job, JobList
from .schedule import Task, least_seconds, longest_chain, schedule_seconds
from .study import Study

FAR_OFF = 5.0  # a correction by more says that the jobs ran on other hardware than plan.gpu


@dataclass(frozen=True)
class Correction:
    """What finished jobs of one kind took, over what was estimated for them."""

    kind: str
    jobs: int
    ratio: float


@dataclass(frozen=True)
class Price:
    """What one job costs.

    Attributes:
        gpu_hours: of all its GPUs.
        seconds: that it takes.
        basis: measured, corrected, estimate or guess.
        done: whether its output is there.
    """

    gpu_hours: float
    seconds: float
    basis: str
    done: bool


@dataclass(frozen=True)
class PlanRow:
    """One target and everything that it waits for; storage in 10^9 bytes.

    Attributes:
        target: what is made.
        command: what makes it.
        jobs, jobs_to_do: of all kinds; those whose output is missing.
        hours: stage -> GPU hours.
        additional_hours: the same without jobs that the targets above pay for already.
        gpu_hours, additional_gpu_hours, remaining_gpu_hours: sums; the last of the jobs to do.
        wall_hours_least: of the jobs to do, longest chain or work spread over all GPUs, whichever takes longer.
        wall_hours: of the jobs to do, by a list schedule.
        labels_gb, weights_gb: left on the disk.
        checkpoints_gb: at most at once, of trainings that run side by side.
        cost, remaining_cost: in the plan's currency.
        basis: what the jobs with a GPU rest on: measured, corrected by others, estimate, guess.
    """

    target: str
    command: str
    jobs: int
    jobs_to_do: int
    hours: dict[str, float]
    additional_hours: dict[str, float]
    gpu_hours: float
    additional_gpu_hours: float
    remaining_gpu_hours: float
    wall_hours_least: float
    wall_hours: float
    labels_gb: float
    weights_gb: float
    checkpoints_gb: float
    cost: float
    remaining_cost: float
    basis: str


@dataclass(frozen=True)
class Plan:
    """The rows, the last of which is the total, and what they rest on.

    Attributes:
        rows: targets that are selected, then the total.
        unselected: tables of segmentation that can be asked for; in no total, `additional` is what they add to it.
    """

    rows: tuple[PlanRow, ...]
    unselected: tuple[PlanRow, ...]
    corrections: tuple[Correction, ...]
    notes: tuple[str, ...]
    settings: dict[str, Any]

    def as_json(self) -> dict[str, Any]:
        """What the plan's job reads."""
        return asdict(self)

    @classmethod
    def from_json(cls, document: Mapping[str, Any]) -> Plan:
        """Inverse of `as_json`, lists for tuples."""
        return cls(
            rows=tuple(PlanRow(**row) for row in document["rows"]),
            unselected=tuple(PlanRow(**row) for row in document["unselected"]),
            corrections=tuple(Correction(**found) for found in document["corrections"]),
            notes=tuple(document["notes"]),
            settings=document["settings"],
        )


def plan_study(study: Study, base: Path, light: Study | None = None) -> Plan:
    """Prices everything that `select:` names.

    Args:
        study: of the configuration.
        base: folder that holds results/ and benchmarks/; empty for a study that never ran.
        light: its first light where that ran: corrects kinds of jobs of which the study itself has finished none.

    Raises:
        ConfigError: settings with which no training could run.
        DataError: a benchmark file that says nothing sensible.
    """
    jobs = JobList(study)
    targets = list_targets(study, jobs)
    measured = _measured(jobs.jobs.values(), base)
    corrections = _corrections(jobs.jobs.values(), measured)
    if light is not None:
        others = JobList(light)
        list_targets(light, others)
        corrections = _corrections(others.jobs.values(), _measured(others.jobs.values(), base)) | corrections
    prices = {path: _price(job, base, measured, corrections) for path, job in jobs.jobs.items()}
    rows, paid = [], set[str]()
    for (target, command), paths in targets.items():
        needed = jobs.closure(paths)
        rows.append(_row(study, target, command, needed, prices, corrections, paid))
        paid |= needed.keys()
    rows.append(_row(study, "total", "all targets", jobs.jobs, prices, corrections, set()))
    machine = study.config.machine
    return Plan(
        rows=tuple(rows),
        unselected=tuple(_unselected(study, base, corrections, set(jobs.jobs))),
        corrections=tuple(corrections.values()),
        notes=tuple(_notes(study, jobs.jobs, prices, corrections)),
        settings=study.config.plan.model_dump(mode="json") | {"processes": machine.processes * machine.nodes},
    )


def _unselected(study: Study, base: Path, corrections: Mapping[str, Correction], paid: set[str]) -> Iterable[PlanRow]:
    """Rows of tables of segmentation that nobody selected."""
    for table in study.offered_segmentations:
        if table.name not in study.config.select.segmentation:
            jobs = JobList(study)
            jobs.add_segmentation(table)
            measured = _measured(jobs.jobs.values(), base)
            prices = {path: _price(job, base, measured, corrections) for path, job in jobs.jobs.items()}
            target = f"{table.name} (not selected)"
            yield _row(study, target, f"snakemake {table.csv}", jobs.jobs, prices, corrections, paid)


def list_targets(study: Study, jobs: JobList) -> dict[tuple[str, str], list[str]]:
    """(Name, command) -> paths, in the order in which a study is read; fills the list of jobs on the way."""
    targets: dict[tuple[str, str], list[str]] = {}
    for labels in study.selected_labels:
        targets[f"labels {labels.annotator}", "snakemake labels"] = jobs.add_labels(labels)
    targets["published", f"snakemake {study.published.csv}"] = [jobs.add_published()]
    for table in study.selected_tables:
        targets[table.name, f"snakemake {table.csv}"] = [jobs.add_table(table)]
    for segmentation in study.selected_segmentations:
        targets[segmentation.name, f"snakemake {segmentation.csv}"] = [jobs.add_segmentation(segmentation)]
    if study.used_labels:
        fidelity = [jobs.add_fidelity(labels) for labels in study.used_labels]
        path = "results/label_fidelity.csv"
        targets["label fidelity", f"snakemake {path}"] = [jobs.add_other(path, fidelity)]
    curves = [path for table in study.selected_tables for path in jobs.add_curves(table)]
    curves += [path for segmentation in study.selected_segmentations for path in jobs.add_curves(segmentation)]
    if curves:
        targets["training curves", f"snakemake {curves[0]} ..."] = curves
    pages = [path for paths in list(targets.values())[len(study.selected_labels) + 1 :] for path in paths]
    if study.drawn_labels:
        shards = [path for labels in study.drawn_labels for path in jobs.add_labels(labels)]
        pages.append(jobs.add_other("results/figures/label_maps.png", shards))
    for segmentation in study.selected_segmentations:
        if segmentation.viewed:
            trained = jobs.add_run(segmentation.viewed, segmentation.seeds[0])
            pages.append(jobs.add_other(segmentation.views, [trained]))
    for table in study.selected_tables:
        if table.name == "main":  # what the figure of accuracy against parameters shows
            pages.append(jobs.add_other("results/figures/accuracy_parameters.png", list(jobs.jobs[table.csv].after)))
    pages.append(jobs.add_other("results/pages", pages))
    targets["report", "snakemake all"] = [jobs.add_other("results/report.html", pages)]
    return targets


def _measured(jobs: Iterable[Job], base: Path) -> dict[str, tuple[float, int]]:
    """Path -> seconds and GPUs of each finished job that left them."""
    found: dict[str, tuple[float, int]] = {}
    runs: dict[tuple[str, int], float | None] = {}
    for job in jobs:
        if not job.gpus or not _is_done(job, base):
            continue
        seconds = None
        gpus = job.gpus
        if job.run is not None and (base / _done_of(job)).exists():
            kind = Path(job.path).parts[1]
            if job.run not in runs:
                runs[job.run] = run_seconds(base, *job.run, kind)
            whole = runs[job.run]
            seconds = whole if whole is None else whole / job.parts
            gpus = run_processes(base, *job.run, kind)
        elif job.benchmark is not None:
            seconds = job_seconds(base / job.benchmark)
        if seconds is not None:
            found[job.path] = (seconds, gpus)
    return found


def _is_done(job: Job, base: Path) -> bool:
    """Whether its output is there, or the finished run whose leg it is."""
    return (base / job.path).exists() or (job.run is not None and (base / _done_of(job)).exists())


def _done_of(job: Job) -> str:
    """Marker of the whole run."""
    return str(Path(job.path).with_name("done.json"))


def _corrections(jobs: Iterable[Job], measured: Mapping[str, tuple[float, int]]) -> dict[str, Correction]:
    took, should, counts = Counter[str](), Counter[str](), Counter[str]()
    for job in jobs:
        if job.path in measured:
            seconds, gpus = measured[job.path]
            took[job.kind] += seconds * gpus  # type: ignore[assignment]
            should[job.kind] += job.seconds * job.gpus  # type: ignore[assignment]
            counts[job.kind] += 1
    return {
        kind: Correction(kind=kind, jobs=counts[kind], ratio=took[kind] / should[kind])
        for kind in counts
        if should[kind] > 0 and took[kind] > 0
    }


def _price(
    job: Job, base: Path, measured: Mapping[str, tuple[float, int]], corrections: Mapping[str, Correction]
) -> Price:
    done = _is_done(job, base)
    if job.path in measured:
        seconds, gpus = measured[job.path]
        return Price(gpu_hours=seconds * gpus / 3600, seconds=seconds, basis="measured", done=done)
    correction = corrections.get(job.kind)
    seconds = job.seconds * (correction.ratio if correction else 1.0)
    basis = "corrected" if correction else "guess" if job.guessed else "estimate"
    return Price(gpu_hours=seconds * job.gpus / 3600, seconds=seconds, basis=basis, done=done)


def _row(
    study: Study, target: str, command: str, needed: Mapping[str, Job], prices: Mapping[str, Price],
    corrections: Mapping[str, Correction], paid: set[str],
) -> PlanRow:  # fmt: skip
    settings = study.config.plan
    hours, additional = dict.fromkeys(STAGES, 0.0), dict.fromkeys(STAGES, 0.0)
    for path, job in needed.items():
        if job.gpus:
            hours[job.stage] += prices[path].gpu_hours
            additional[job.stage] += prices[path].gpu_hours if path not in paid else 0.0
    to_do = {path: job for path, job in needed.items() if not prices[path].done}
    tasks = _tasks(to_do, prices)
    gpu_hours, remaining = sum(hours.values()), sum(prices[path].gpu_hours for path in to_do)
    running = sorted({job.run: job.checkpoint_bytes for job in needed.values() if job.run}.values(), reverse=True)
    side_by_side = settings.gpus // (study.config.machine.processes * study.config.machine.nodes)
    return PlanRow(
        target=target,
        command=command,
        jobs=len(needed),
        jobs_to_do=len(to_do),
        hours=hours,
        additional_hours=additional,
        gpu_hours=gpu_hours,
        additional_gpu_hours=sum(additional.values()),
        remaining_gpu_hours=remaining,
        wall_hours_least=least_seconds(tasks, settings.gpus) / 3600,
        wall_hours=schedule_seconds(tasks, settings.gpus) / 3600,
        labels_gb=sum(job.label_bytes for job in needed.values()) / 1e9,
        weights_gb=sum(job.weights_bytes for job in needed.values()) / 1e9,
        checkpoints_gb=sum(running[:side_by_side]) / 1e9,
        cost=gpu_hours * settings.price_per_gpu_hour,
        remaining_cost=remaining * settings.price_per_gpu_hour,
        basis=_basis(needed, prices, corrections),
    )


def _tasks(jobs: Mapping[str, Job], prices: Mapping[str, Price]) -> dict[str, Task]:
    return {path: Task(seconds=prices[path].seconds, gpus=job.gpus, after=job.after) for path, job in jobs.items()}


def _basis(needed: Mapping[str, Job], prices: Mapping[str, Price], corrections: Mapping[str, Correction]) -> str:
    """How many of the jobs with a GPU rest on what; one word where all rest on the same."""
    paths: dict[str, list[str]] = {}
    for path, job in needed.items():
        if job.gpus:
            paths.setdefault(prices[path].basis, []).append(path)
    words = []
    for basis in ("measured", "corrected", "estimate", "guess"):
        if basis not in paths:
            continue
        word = basis if len(paths) == 1 else f"{len(paths[basis])} {basis}"
        if basis == "corrected":
            used = {needed[path].kind: corrections[needed[path].kind] for path in paths[basis]}.values()
            ratios = sorted({f"{found.ratio:.3g}" for found in used}, key=float)
            between = " to ".join(dict.fromkeys((ratios[0], ratios[-1])))
            word += f" x{between} from {_jobs(sum(found.jobs for found in used))}"
        words.append(word)
    return ", ".join(words)


def _notes(
    study: Study, jobs: Mapping[str, Job], prices: Mapping[str, Price], corrections: Mapping[str, Correction]
) -> list[str]:
    """What a reader should know before believing the rows."""
    notes = []
    tasks = _tasks({path: job for path, job in jobs.items() if not prices[path].done}, prices)
    chain = [path for path in longest_chain(tasks) if tasks[path].gpus]
    if chain:
        hours = sum(tasks[path].seconds for path in chain) / 3600
        notes.append(
            f"The longest chain of jobs that wait for each other takes {hours:,.1f} h and ends with {chain[-1]}. More GPUs do "
            f"not shorten it; machine.processes does, the GPUs of one training (now {study.config.machine.processes})."
        )
    for found in corrections.values():
        if not 1 / FAR_OFF <= found.ratio <= FAR_OFF:
            notes.append(
                f"{found.kind}: {_jobs(found.jobs, 'finished ')} took {found.ratio:.3g} times the estimate. Is plan.gpu "
                f"({study.config.plan.gpu}) what they ran on?"
            )
    guessed = sorted({job.kind for path, job in jobs.items() if prices[path].basis == "guess"})
    if guessed:
        notes.append(f"Guessed, for models without gmacs in the configuration: {', '.join(guessed)}.")
    return notes


def _jobs(count: int, kind: str = "") -> str:
    return f"{count} {kind}job{'s' if count != 1 else ''}"
