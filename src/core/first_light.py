"""First light: a study of one short training that runs every rule before the real study, and what it says of that.

Called by rules/first_light.smk, the plan and `tokenlabel plan`. Its jobs are the study's own (same rules, models and annotators)
with other caps, so they lie in folders with other digests and never mix with the study's.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from .plan import list_targets
from .plan_jobs import Job, JobList
from .planned import RESULTS, Run, Table
from .segment_plan import SegmentationTable
from .study import ANNOTATOR_ALONE, Study

SHARE = 0.01  # of the training photographs
PHOTOGRAPHS_A_CLASS = 4  # at least, on average
ITERATIONS = 50  # of a training for segmentation, of each of its legs where it has some
EXPERIMENT = "light"  # its only experiment; no path is made of the name
SEGMENTATION = "light_segmentation"  # the same of segmentation
FOLDER = RESULTS / "first_light"
SUMMARY = RESULTS / "first_light.csv"


def plan_first_light(raw: Mapping[str, Any], study: Study) -> Study:
    """Plans the first light of a study.

    Args:
        raw: the study's configuration as Snakemake merged it.
        study: planned from it.

    Raises:
        ConfigError: as `Study.plan`.
    """
    changed = copy.deepcopy(dict(raw))
    # with legs two epochs, so that there is a first leg and a last one
    legs = not {"train_leg", "train_segmentation_leg"}.isdisjoint(_jobs_by_rule(study))
    images = max(math.ceil(SHARE * study.train_images), PHOTOGRAPHS_A_CLASS * study.config.dataset.num_classes)
    caps = dict(changed.get("caps") or {})
    caps |= {
        "epochs": min(2 if legs else 1, caps.get("epochs") or 2),
        "images": min(images, study.train_images),
        "seeds": 1,
    }
    changed["caps"] = caps
    changed["labels"] = {**changed["labels"], "shards": 1}
    changed["machine"] = {**changed["machine"], "leg_epochs": 1 if legs else None}
    caps["iterations"] = None  # the row says them
    rows = _rows(study)
    segmenter = _segmenter_row(study, 2 if legs else 1)
    used = _annotator_of(rows, study)
    adapted = next((job.annotator for job in study.selected_labels if job.adapted), None)
    names = list(dict.fromkeys(name for name in (used, adapted) if name))
    rows += [
        {"name": f"alone_{name}", "label": f"{name} alone", "set": {"model": ANNOTATOR_ALONE, "annotator": name}}
        for name in names
    ]
    table = {
        "question": "Does every rule run here, and how long does it take?",
        "paper": "none (first light: one short training, its accuracy means nothing)",
        "seeds": [0],
        "rows": rows,
    }
    changed["experiments"] = {EXPERIMENT: table} if rows else {}
    changed["select"] = {
        **changed["select"], "annotators": names, "experiments": list(changed["experiments"]), "segmentation": [],
    }  # fmt: skip
    if segmenter is not None:
        changed["select"]["segmentation"] = [SEGMENTATION]
        changed["segmentation"] = {
            **changed["segmentation"],
            "experiments": {
                SEGMENTATION: {
                    "question": "Does segmentation run here, and how long does it take?",
                    "paper": "none (first light: a few steps, its mean IoU means nothing)",
                    "seeds": [0],
                    "rows": [segmenter],
                }
            },
        }
    return Study.plan(changed)


def finished_first_light(raw: Mapping[str, Any], study: Study, base: Path) -> Study | None:
    """The study's first light where it ran, for the plan's corrections; None before.

    Args:
        raw: configuration.
        study: planned from it.
        base: folder that holds results/.
    """
    return plan_first_light(raw, study) if (base / SUMMARY).exists() else None


def _trainings(study: Study) -> list[tuple[Run, dict[str, Any]]]:
    """Runs of the study's rows and what a row says of them, those first that need most."""
    candidates = [
        (row.run, {**table.experiment.set, **row.differs})
        for table in study.selected_tables
        for row in table.rows
        if isinstance(row.run, Run)
    ]
    # labels before none, an adapted annotator before one that is not, a fine-tuning after a training before one of them alone
    candidates.sort(
        key=lambda found: (_has_labels(found[0]), _is_adapted(found[0]), bool(found[0].start)), reverse=True
    )
    return candidates


def _rows(study: Study) -> list[dict[str, Any]]:
    """A training of the study, and a fine-tuning that follows it where the study has one."""
    candidates = _trainings(study)
    if not candidates:
        return []
    run, choice = candidates[0]
    if run.start is None:
        return [{"name": "run", "label": "one training", "set": choice}]
    sizes = choice.get("finetune_px") or list(study.config.defaults.finetune_px)
    return [
        {"name": "run", "label": "one training", "set": {**choice, "finetune_px": []}},
        {"name": "finetuned", "label": "and its fine-tuning", "set": {**choice, "finetune_px": sizes[:1]}},
    ]


def _segmenter_row(study: Study, legs: int) -> dict[str, Any] | None:
    """A short training for segmentation of the study, from the backbone of `_rows` where one has it; None where it has none."""
    candidates = [(row.run.start, row, table) for table in study.selected_segmentations for row in table.rows]
    if not candidates:
        return None
    trained = next((run for run, _ in _trainings(study)), None)
    run_anyway = set()
    while trained is not None:
        run_anyway.add(trained.name)
        trained = trained.start
    _, row, table = max(
        candidates,
        key=lambda found: (found[0] is not None and found[0].name in run_anyway, found[0] is not None),
    )
    iterations = min(ITERATIONS, max(1, (study.config.caps.iterations or legs * ITERATIONS) // legs))
    return {
        "name": "segmenter",
        "label": "one training for segmentation",
        "set": {
            **table.experiment.set,
            **row.differs,
            "segment.iterations": legs * iterations,
            "segment.interval_iterations": iterations,
            "segment.warmup_iterations": iterations // 5,
        },
    }


def _has_labels(run: Run) -> bool:
    return run.labels is not None


def _is_adapted(run: Run) -> bool:
    return run.labels is not None and run.labels.adapted is not None


def _annotator_of(rows: list[dict[str, Any]], study: Study) -> str | None:
    """The annotator whose labels the rows learn from, else the first selected one; None where the study has neither."""
    if rows and study.used_labels:
        return rows[0]["set"].get("annotator") or study.config.defaults.annotator
    return next(iter(study.config.select.annotators), None)


def light_table(light: Study) -> Table | None:
    """The first light's table; None for a study of segmentation alone, from backbones that it does not train."""
    return light.tables.get(EXPERIMENT)


def light_segmentation(light: Study) -> SegmentationTable | None:
    """The first light's table of segmentation; None where the study selects none."""
    return next(iter(light.selected_segmentations), None)


def light_results(light: Study) -> list[str]:
    """Outputs of all its jobs on compute nodes: evaluations, labels of every annotator, their fidelity."""
    labels = [marker for job in light.selected_labels for marker in job.markers]
    measured = [path for table in light.selected_tables for path in table.inputs]
    measured += [path for table in light.selected_segmentations for path in table.inputs]
    return [*measured, *labels, *map(light.fidelity_of, light.selected_labels)]


def summary_document(study: Study, light: Study, local: Mapping[str, tuple[str, int]]) -> dict[str, Any]:
    """What the summary's job reads: rule by rule the jobs of the first light and those of the study.

    Args:
        study: the real one.
        light: its first light.
        local: rule without a GPU -> its benchmark file here, and how many jobs of it the study has.

    Returns:
        A JSON object with a list `rules`; seconds, bytes and GPUs as in `plan_jobs.Job`.
    """
    here, whole = _jobs_by_rule(light, light_results(light)), _jobs_by_rule(study)
    rules = []
    for rule, jobs in here.items():
        all_jobs = whole.get(rule, [])
        rules.append(
            {
                "rule": rule,
                "jobs": [
                    {
                        "path": job.path,
                        "benchmark": job.benchmark or _benchmark_of(job),
                        "estimate_s": job.seconds,
                        "gpus": max(1, job.gpus),
                        "estimate_bytes": job.label_bytes + job.weights_bytes,
                    }
                    for job in jobs
                ],
                "study_jobs": len(all_jobs),
                "study_estimate_gpu_s": sum(job.seconds * max(1, job.gpus) for job in all_jobs),
                "study_estimate_bytes": sum(job.label_bytes + job.weights_bytes for job in all_jobs),
            }
        )
    rules += [
        {
            "rule": rule,
            "jobs": [{"path": None, "benchmark": benchmark, "estimate_s": 0.0, "gpus": 1, "estimate_bytes": 0.0}],
            "study_jobs": count,
            "study_estimate_gpu_s": 0.0,
            "study_estimate_bytes": 0.0,
        }
        for rule, (benchmark, count) in local.items()
    ]
    return {
        "photographs": light.train_images,
        "study_photographs": study.train_images,
        "job_start_s": study.config.plan.job_start_s,
        "gpu": study.config.plan.gpu,
        "rules": rules,
    }


def _jobs_by_rule(study: Study, targets: list[str] | None = None) -> dict[str, list[Job]]:
    """Rule -> its jobs on compute nodes, in the order in which they run: those that some targets need, by default all."""
    jobs = JobList(study)
    list_targets(study, jobs)
    needed = jobs.jobs if targets is None else jobs.closure(targets)
    order = (
        "make_manifest", "adapt_annotator", "evaluate_annotator", "annotate_shard", "measure_fidelity", "train_leg", "train_run",
        "evaluate_run", "make_scene_manifest", "train_segmentation_leg", "train_segmentation", "evaluate_segmentation",
    )  # fmt: skip
    found: dict[str, list[Job]] = {rule: [] for rule in order}
    for job in needed.values():
        rule = rule_of(job.path)
        if rule:
            found[rule].append(job)
    return {rule: listed for rule, listed in found.items() if listed}


def rule_of(path: str) -> str | None:
    """The rule that makes an output on a compute node; None for all other outputs."""
    kind, name = Path(path).parts[1], Path(path).name
    if kind == "data":
        return "make_manifest"
    if kind == "annotators":
        return "adapt_annotator" if name == "adapted.done" else "evaluate_annotator"
    if kind == "labels":
        return "measure_fidelity" if name.startswith("fidelity-") else "annotate_shard"
    if kind == "scenes":
        return "make_scene_manifest"
    if kind == "segmentation":
        if name == "done.json":
            return "train_segmentation"
        return "train_segmentation_leg" if name.startswith("leg-") else "evaluate_segmentation"
    if kind == "runs":
        return "train_run" if name == "done.json" else "train_leg" if name.startswith("leg-") else "evaluate_run"
    return None


def _benchmark_of(job: Job) -> str:
    """Benchmark file of the rule that made an output, also where the plan takes its seconds from elsewhere or from nowhere."""
    path = Path("benchmarks", *Path(job.path).parts[1:])
    if path.name == "manifest.done":
        return f"{path.parent}.tsv"
    return str(path.with_name("train.tsv") if path.name == "done.json" else path.with_suffix(".tsv"))
