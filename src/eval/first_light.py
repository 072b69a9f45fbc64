"""What a first light says of the study: seconds and bytes of its jobs, rule by rule, scaled to the study's jobs.

The study's hours are its estimate times measured over estimated of the same rule here; likewise its bytes. Called by
`first_light_command`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..core.benchmarks import job_seconds
from ..core.errors import DataError
from .markdown import format_table

COLUMNS = (
    "rule", "jobs", "seconds", "estimated_seconds", "ratio", "mb", "study_jobs", "study_estimated_gpu_hours", "study_gpu_hours",
    "study_gb", "remark",
)  # fmt: skip


@dataclass(frozen=True)
class RuleMeasured:
    """One rule.

    Attributes:
        rule: its name.
        jobs: of it that ran here.
        seconds: that they took, each with all its GPUs.
        estimated_s: that the plan gave them, 0 for rules that it does not time.
        ratio: seconds over estimate; None without an estimate.
        size_mb: 10^6 bytes that they left.
        study_jobs: of the rule in the whole study.
        study_estimated_gpu_hours, study_gpu_hours: the plan's figure for them, and that times the ratio. Of rules without an
            estimate: jobs times the seconds here, hours of a processor.
        study_gb: 10^9 bytes that they will leave; None where the plan gives none.
        remark: what to know before believing the line.
    """

    rule: str
    jobs: int
    seconds: float
    estimated_s: float
    ratio: float | None
    size_mb: float
    study_jobs: int
    study_estimated_gpu_hours: float | None
    study_gpu_hours: float
    study_gb: float | None
    remark: str

    def cells(self) -> list[str]:
        """The columns as text."""
        numbers = (self.seconds, self.estimated_s or None, self.ratio, self.size_mb)
        of_study = (self.study_estimated_gpu_hours, self.study_gpu_hours, self.study_gb)
        return [
            self.rule, str(self.jobs), *map(_short, numbers), str(self.study_jobs), *map(_short, of_study), self.remark,
        ]  # fmt: skip


def measure_rules(document: Mapping[str, Any], base: Path) -> list[RuleMeasured]:
    """Reads what the jobs left.

    Args:
        document: of `core.first_light.summary_document`.
        base: folder that holds results/ and benchmarks/.

    Raises:
        DataError: a job left no benchmark file, or one that says nothing sensible.
    """
    return [_measure(rule, float(document["job_start_s"]), base) for rule in document["rules"]]


def _measure(rule: Mapping[str, Any], job_start_s: float, base: Path) -> RuleMeasured:
    jobs = rule["jobs"]
    seconds = gpu_s = 0.0
    for job in jobs:
        found = job_seconds(base / job["benchmark"])
        if found is None:
            raise DataError(
                f"{base / job['benchmark']}: no such file; rule {rule['rule']} left no record of its time. Delete "
                f"{job['path'] or 'results/first_light'} and run snakemake first_light again."
            )
        seconds += found
        gpu_s += found * job["gpus"]
    estimated_s = sum(job["estimate_s"] for job in jobs)
    estimated_gpu_s = sum(job["estimate_s"] * job["gpus"] for job in jobs)
    ratio = gpu_s / estimated_gpu_s if estimated_gpu_s else None
    size_bytes = _size_bytes([base / job["path"] for job in jobs if job["path"]])
    estimated_bytes = sum(job["estimate_bytes"] for job in jobs)
    study_jobs = rule["study_jobs"]
    remark = "" if study_jobs else "the study has no such job"
    if ratio is not None and estimated_s < 2 * job_start_s * len(jobs):
        remark = "; ".join(
            filter(None, [remark, "mostly the start of the process: too short to say much of long jobs"])
        )
    return RuleMeasured(
        rule=rule["rule"],
        jobs=len(jobs),
        seconds=seconds,
        estimated_s=estimated_s,
        ratio=ratio,
        size_mb=size_bytes / 1e6,
        study_jobs=study_jobs,
        study_estimated_gpu_hours=None if ratio is None else rule["study_estimate_gpu_s"] / 3600,
        study_gpu_hours=(
            rule["study_estimate_gpu_s"] * ratio if ratio is not None else study_jobs * seconds / len(jobs)
        )
        / 3600,
        study_gb=rule["study_estimate_bytes"] * size_bytes / estimated_bytes / 1e9 if estimated_bytes else None,
        remark=remark,
    )


def _size_bytes(outputs: list[Path]) -> int:
    """Bytes of the folders that outputs lie in; a folder that holds others' too counts its own name's files only."""
    total = 0
    for output in outputs:
        if output.name.startswith(("evaluation-", "fidelity-", "leg-")):
            found = [output]
        elif output.suffix == ".done" and output.name != "manifest.done" and output.name != "adapted.done":
            found = list(output.parent.glob(f"{output.stem}.*"))  # a shard and its marker
        else:
            found = [
                path for path in output.parent.rglob("*") if not path.name.startswith(("evaluation-", "fidelity-"))
            ]
        total += sum(path.stat().st_size for path in found if path.is_file())
    return total


def as_page(document: Mapping[str, Any], rows: list[RuleMeasured]) -> str:
    """The summary as a page in Markdown."""
    hours = sum(row.study_gpu_hours for row in rows if row.ratio is not None)
    planned = sum(row.study_estimated_gpu_hours or 0.0 for row in rows)
    stored = sum(row.study_gb or 0.0 for row in rows)
    return (
        "# First light\n\n"
        f"Every rule ran once, on {document['photographs']:,} of {document['study_photographs']:,} training photographs. By its "
        f"seconds the study takes {hours:,.1f} GPU hours (planned for {document['gpu']}: {planned:,.1f}) and leaves "
        f"{stored:,.2f} GB of labels and weights.\n\n"
        "`ratio`: measured over estimated seconds. `study_gpu_hours`: the study's estimate times that ratio; where nothing is "
        "estimated, its jobs times the seconds here. `results/plan.csv` takes the ratios for kinds of jobs of which the study has "
        "finished none.\n\n"
        f"{format_table(COLUMNS, [row.cells() for row in rows])}\n"
    )


def _short(value: float | None) -> str:
    return "" if value is None else f"{value:.4g}"
